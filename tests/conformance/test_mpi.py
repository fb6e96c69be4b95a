"""The same between processes: one job for each number of ranks runs all passes."""

from __future__ import annotations

import re

import pytest

from tests.conformance.scopes import BETWEEN_PROCESSES, FULL, PROCESSES
from tests.helpers import ROOT, run

LIMIT_S = 7200 if FULL else 100


@pytest.mark.timeout(LIMIT_S + 20)
@pytest.mark.parametrize("transport", BETWEEN_PROCESSES)
@pytest.mark.parametrize("size", PROCESSES)
def test_processes(size: int, transport: str, tally: list[str]) -> None:
    program = ROOT / "tests" / "mpi" / "conformance_main.py"
    outcome = run(size, program, transport, limit_s=LIMIT_S)
    assert outcome.status == 0, outcome
    lines = re.findall(r"conformance: (.*: \d+ cases)", outcome.stdout)
    assert len(lines) == 2, outcome
    tally += lines
