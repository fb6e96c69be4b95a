"""pycomm.testing.run_threads: results by rank, the first cause of a failure, and where ranks hang."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest

import pycomm
from pycomm import Communicator
from pycomm.testing import run_threads
from tests.helpers import python_path

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("transport", ["inproc", "inproc_mapped", None])
def test_results_come_by_rank(transport: str | None) -> None:
    def rank(comm: Communicator, add: int) -> tuple[int, str]:
        return comm.rank + add, comm.transport

    expected = transport or "inproc_mapped"
    assert run_threads(3, rank, 10, transport=transport) == [(10, expected), (11, expected), (12, expected)]


def test_one_rank_is_enough() -> None:
    assert run_threads(1, lambda comm: (comm.size, comm.transport, comm.all_reduce(np.ones(2)).tolist())) == [
        (1, "none", [1.0, 1.0])
    ]


def test_the_first_exception_is_raised_and_the_others_are_woken() -> None:
    seen: list[str] = []

    def rank(comm: Communicator) -> None:
        if comm.rank == 2:
            time.sleep(0.1)
            raise KeyError("lost")
        try:
            comm.barrier(timeout=50)
        except pycomm.Aborted as error:
            seen.append(str(error))
            raise

    start = time.monotonic()
    with pytest.raises(KeyError, match="lost"):
        run_threads(4, rank)
    assert time.monotonic() - start < 20
    assert len(seen) == 3 and all("rank 2 raised KeyError" in message for message in seen)


def test_a_rank_that_fails_before_it_is_connected_stops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCOMM_WINDOW", "many")
    with pytest.raises(pycomm.InvalidArgument, match="PYCOMM_WINDOW"):
        run_threads(4, lambda comm: None, timeout=20)


def test_a_hang_says_where_each_rank_is() -> None:
    release = threading.Event()

    def rank(comm: Communicator) -> None:
        if comm.rank == 1:
            release.wait(30)

    with pytest.raises(
        pycomm.Timeout, match=r"1 of 2 ranks have not returned after 0\.3 s\nrank 1:\n(.|\n)*release\.wait"
    ):
        run_threads(2, rank, timeout=0.3)
    release.set()


def test_worlds_do_not_see_each_other() -> None:
    def inner(comm: Communicator) -> float:
        return float(comm.all_reduce(np.ones(1))[0])

    def outer(comm: Communicator) -> float:
        return run_threads(3, inner)[0] + float(comm.all_reduce(np.ones(1))[0])

    assert run_threads(2, outer) == [5.0, 5.0]


def test_failed_worlds_leave_nothing_that_crashes_later() -> None:
    """Engines that tracebacks keep alive must not outlive the world they stand on."""
    program = """
import gc
import numpy as np, pycomm
from pycomm.testing import run_threads

kept = []

def rank(comm):
    comm.all_reduce_async(np.ones(10_000 + comm.rank))
    comm.barrier()

for n in (2, 3, 4):
    try:
        run_threads(n, rank)
    except pycomm.PycommError as error:
        kept.append(error)
gc.collect()
kept.clear()
gc.collect()
print("well")
"""
    env = {**os.environ, "PYTHONPATH": python_path()}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tempfile.gettempdir(),
        env=env,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "well\n", "")
