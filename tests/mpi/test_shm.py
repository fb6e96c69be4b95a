"""Processes of one node meet in shared memory, also more of them than there are cores."""

from __future__ import annotations

import pytest

from tests.helpers import ROOT, run


@pytest.mark.timeout(60)
@pytest.mark.parametrize("size", [2, 5])
def test_shared_memory_as_a_program_uses_it(size: int) -> None:
    outcome = run(size, ROOT / "tests" / "mpi" / "shm_main.py", env={"PYCOMM_TRANSPORTS": "shm"}, limit_s=50)
    assert (outcome.status, outcome.stdout) == (0, "well\n"), outcome
