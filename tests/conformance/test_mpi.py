"""The same between processes: one job for each number of ranks runs all passes."""

from __future__ import annotations

import re

import pytest

from tests.conformance.scopes import BETWEEN_PROCESSES, FULL, LAYOUTS_OF_PROCESSES, PROCESSES
from tests.helpers import ROOT, Outcome, run

LIMIT_S = 7200 if FULL else 100


@pytest.mark.timeout(LIMIT_S + 20)
@pytest.mark.parametrize("transport", BETWEEN_PROCESSES)
@pytest.mark.parametrize("size", [pytest.param(PROCESSES[0], marks=pytest.mark.long), *PROCESSES[1:]])
def test_processes(size: int, transport: str, tally: list[str]) -> None:
    program = ROOT / "tests" / "mpi" / "conformance_main.py"
    tally += passes(run(size, program, transport, limit_s=LIMIT_S))


@pytest.mark.timeout(LIMIT_S + 20)
@pytest.mark.parametrize("nodes", LAYOUTS_OF_PROCESSES, ids=str)
def test_processes_on_several_nodes(nodes: tuple[int, ...], tally: list[str]) -> None:
    """Shared memory within nodes, MPI between them."""
    program = ROOT / "tests" / "mpi" / "conformance_main.py"
    env = {"PYCOMM_NODES": ",".join(map(str, nodes))}
    tally += passes(run(len(nodes), program, "shm,mpi", env=env, limit_s=LIMIT_S))


def passes(outcome: Outcome) -> list[str]:
    assert outcome.status == 0, outcome
    lines = re.findall(r"conformance: (.*: \d+ cases)", outcome.stdout)
    assert lines, outcome
    return lines
