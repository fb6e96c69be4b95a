"""The conformance cases on CUDA tensors: every algorithm, codec, dtype and op."""

from __future__ import annotations

from functools import partial

import pytest

from pycomm.testing import run_threads
from tests.conformance.cases import SMALL_BYTES, Scope, cases
from tests.conformance.on_device import DeviceMemory, placeable
from tests.conformance.oracle import Oracle
from tests.conformance.runner import judge, run_cases
from tests.conformance.scopes import OWN_BYTES, environment, registry
from tests.helpers import BETWEEN_THREADS, ROOT, run

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("segment_bytes", [SMALL_BYTES, OWN_BYTES])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("transport", BETWEEN_THREADS)
def test_tensors_of_ranks_that_are_threads(
    transport: str, size: int, segment_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = Scope("algorithms", segment_bytes)
    for name, value in environment(scope).items():
        monkeypatch.setenv(name, value)
    made = [case for case in cases(registry(), size, transport, scope) if placeable(case)]
    place = partial(DeviceMemory, "cuda")
    reports = run_threads(size, run_cases, made, Oracle(), place, timeout=500, transport=transport)
    assert judge(made, reports) == []


@pytest.mark.parametrize("transport", ["shm", "mpi"])
@pytest.mark.parametrize("size", [2, 3])
def test_tensors_of_ranks_that_are_processes(transport: str, size: int) -> None:
    program = ROOT / "tests" / "mpi" / "conformance_main.py"
    outcome = run(size, program, transport, "cuda", limit_s=500)
    assert outcome.status == 0, outcome
    assert "conformance: " in outcome.stdout, outcome
