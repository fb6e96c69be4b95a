"""Jobs of several processes: how they end, well or not. Nothing hangs and no process is left behind."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.helpers import Outcome, run, script, start

pytestmark = pytest.mark.timeout(90)

HERE = Path(__file__).parent
SOON_S = 5.0  # from the failure to the end of the last process

HEAD = """
    import os, sys, time
    import numpy as np
    import pycomm

    def now(what):
        # One write: lines of ranks must not mix.
        sys.stdout.write(f"{what} at {time.monotonic()}\\n")
        sys.stdout.flush()

    comm = pycomm.init()
"""


def failed(outcome: Outcome, *words: str) -> None:
    """The job ended with an error, soon after it happened, and the words are on standard error."""
    assert outcome.status not in (0, None), outcome
    for word in words:
        assert re.search(word, outcome.stderr), f"no '{word}' in\n{outcome}"
    happened = [float(time_) for time_ in re.findall(r"failing at ([\d.]+)", outcome.stdout)]
    assert happened, outcome
    assert outcome.ended_s - min(happened) < SOON_S, outcome


def said_nothing(outcome: Outcome) -> None:
    lines = [line for line in outcome.stderr.splitlines() if not line.startswith("pycomm.launch: ")]
    assert (outcome.status, lines) == (0, []), outcome


def test_a_rank_whose_group_broke_does_not_wait_for_the_others_at_exit(tmp_path: Path) -> None:
    source = (
        HEAD
        + """
    group = comm.split(0)
    if comm.rank == 1:
        time.sleep(30)
    try:
        group.all_reduce(np.ones(1), timeout=0.5)
    except pycomm.Timeout:
        now("failing")
        sys.exit(3)
    """
    )
    failed(run(2, script(tmp_path, source), limit_s=25))


@pytest.mark.parametrize(
    "settings",
    [
        {"PYCOMM_PROGRESS": "inline"},
        {"PYCOMM_PROGRESS": "thread"},
        {"PYCOMM_PROGRESS": "inline", "PYCOMM_TRANSPORTS": "mpi"},
        {"PYCOMM_PROGRESS": "thread", "PYCOMM_TRANSPORTS": "mpi"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_a_healthy_job_ends_with_status_0_and_says_nothing(settings: dict[str, str]) -> None:
    outcome = run(3, HERE / "healthy_main.py", env=settings)
    assert outcome.stdout == "well\n", outcome
    said_nothing(outcome)


def test_children_of_ranks() -> None:
    outcome = run(2, HERE / "fork_main.py", env={"PYCOMM_PROGRESS": "thread"})
    assert outcome.stdout == "well\n", outcome
    said_nothing(outcome)


# ---- one rank fails while the others wait for it

FAILURES = {
    "timeout": (
        """
        if comm.rank == 1:
            time.sleep(80)
        try:
            comm.all_reduce(np.ones(100_000), algorithm="ring", timeout=0.5)
        finally:
            now("failing")
        """,
        (
            r"pycomm\.errors\.Timeout: all_reduce\(f64 x 100000",
            "all_reduce:ring",
            "recv from rank 1 in stage 1 of 2",
        ),
    ),
    "a caught timeout": (
        """
        if comm.rank == 1:
            time.sleep(80)
        try:
            comm.barrier(timeout=0.5)
        except pycomm.Timeout:
            now("failing")
            sys.exit(0)
        """,
        (),
    ),
    "an uncaught exception": (
        """
        if comm.rank == 1:
            now("failing")
            raise KeyError("lost")
        comm.all_reduce(np.ones(3))
        """,
        ("KeyError: 'lost'", r"raise KeyError\(.lost.\)"),
    ),
    "an uncaught exception while the others compute": (
        """
        comm.barrier()
        if comm.rank == 1:
            now("failing")
            raise KeyError("lost")
        time.sleep(80)
        """,
        ("KeyError: 'lost'",),
    ),
    "exit with a status": (
        """
        if comm.rank == 1:
            now("failing")
            sys.exit(3)
        comm.all_reduce(np.ones(3))
        """,
        (r"rank 1 has left",),
    ),
    "a mismatch": (
        """
        comm.barrier()
        now("failing")
        comm.all_reduce(np.ones(3 + comm.rank))
        comm.barrier()
        """,
        ("MismatchError", "f64 x 3", "f64 x 4"),
    ),
    "killed": (
        """
        comm.barrier()
        if comm.rank == 1:
            now("failing")
            os.kill(os.getpid(), 9)
        comm.all_reduce(np.ones(3))
        """,
        (),
    ),
    "ended without a goodbye": (
        """
        comm.barrier()
        if comm.rank == 1:
            now("failing")
            os._exit(4)
        comm.all_reduce(np.ones(3))
        """,
        (),
    ),
    "abort": (
        """
        if comm.rank == 1:
            now("failing")
            pycomm.abort(5)
        comm.all_reduce(np.ones(3))
        """,
        ("MPI_ABORT was invoked on rank 1",),
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_of_one_rank_ends_the_job(name: str, tmp_path: Path) -> None:
    body, words = FAILURES[name]
    failed(run(2, script(tmp_path, HEAD + body.replace("\n    ", "\n")), limit_s=40), *words)


def test_a_rank_that_is_killed_on_another_node_ends_the_job_and_is_named(tmp_path: Path) -> None:
    body = """
        assert comm.nodes == [[0, 1], [2, 3]]
        total = comm.all_reduce_init(np.ones(100_000))
        total()
        if comm.rank == 3:
            now("failing")
            os.kill(os.getpid(), 9)
        total()
        """
    program = script(tmp_path, HEAD + body.replace("\n    ", "\n"))
    failed(run(4, program, limit_s=40, env={"PYCOMM_NODES": "0,0,1,1"}), "rank 3 with PID", "signal 9")


def test_init_that_fails_on_one_rank_ends_the_job(tmp_path: Path) -> None:
    program = """
        import os, sys, time
        if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
            os.environ["PYCOMM_SEGMENT_BYTES"] = "lots"
            sys.stdout.write(f"failing at {time.monotonic() + 3}\\n")  # MPI takes a while to start
        import pycomm
        pycomm.init()
    """
    failed(run(2, script(tmp_path, program), limit_s=40), "PYCOMM_SEGMENT_BYTES is 'lots'")


def test_different_settings_are_those_of_rank_0_and_said_once(tmp_path: Path) -> None:
    program = """
        import os
        os.environ["PYCOMM_TIMEOUT_S"] = "20" if os.environ["OMPI_COMM_WORLD_RANK"] == "0" else "30"
        import pycomm
        comm = pycomm.init()
        assert comm._world.engine.timeout_s == 20
        comm.barrier()
    """
    outcome = run(2, script(tmp_path, program), limit_s=40)
    assert outcome.status == 0 and outcome.stderr.count("was started with other settings") == 1, outcome


# ---- signals

WAITING = (
    HEAD
    + """
    comm.barrier()
    if comm.rank == 0:
        now(f"pid {os.getpid()}")
    comm.all_reduce(np.ones(3)) if comm.rank == 0 else time.sleep(80)
"""
)


@pytest.mark.parametrize("target", ["the launcher", "one rank"])
def test_ctrl_c_ends_everything(target: str, tmp_path: Path) -> None:
    job = start(2, script(tmp_path, WAITING), env={"PYTHONUNBUFFERED": "1"})
    assert job.process.stdout is not None
    line = next(line for line in job.process.stdout if line.startswith("pid "))
    time.sleep(0.3)  # into the collective
    sent = time.monotonic()
    os.kill(job.process.pid if target == "the launcher" else int(line.split()[1]), signal.SIGINT)
    outcome = job.finish(40)
    assert outcome.status not in (0, None), outcome
    assert outcome.ended_s - sent < SOON_S, outcome
    if target == "one rank":
        assert "KeyboardInterrupt" in outcome.stderr, outcome


def test_what_a_rank_sent_before_it_left_is_received_however_late(tmp_path: Path) -> None:
    program = script(
        tmp_path,
        """
        import numpy as np
        import pycomm

        comm = pycomm.init()
        if comm.rank == 1:
            comm.send(np.arange(3), 0)
        else:
            try:
                comm.mailbox(0).recv(source=1, timeout=20)
            except pycomm.Aborted:  # a second after it left
                pass
            assert comm.recv(np.empty(3, int), 1).tolist() == [0, 1, 2]
            print("received")
        """,
    )
    outcome = run(2, program)
    assert outcome.status == 0, outcome
    assert "received" in outcome.stdout
