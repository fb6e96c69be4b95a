"""Workers of ranks that are processes, with an engine and an MPI beside them: they change nothing, their
death is told to all, and none of them outlives its rank (which tests.helpers looks for after every job)."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from own_runs import OPTIONS, losses

from tests.helpers import Job, start
from trainer.rows import read_rows

LIMIT_S = 100


def job(out: Path, ranks: int, *arguments: str, **options: object) -> Job:
    settings = {**OPTIONS, "out": out, **options}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return start(ranks, "-m", "trainer", "fit", *flags, *arguments, env={"PYTHONPATH": path})


def test_a_worker_that_is_killed_ends_all_ranks_with_its_error(tmp_path: Path) -> None:
    data = "own_data:broken", "--data_options.how=kill"
    outcome = job(tmp_path, 2, data[1], data=data[0], workers=1).finish(LIMIT_S)
    assert outcome.status != 0, outcome
    for rank in (0, 1):
        assert f"[rank {rank}] trainer.errors.StoppedError: rank" in outcome.stderr, outcome
    assert outcome.stderr.count("a data worker has ended, killed, ") == 2, outcome
    assert (tmp_path / "last_good.safetensors").exists()


@pytest.mark.long
@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize("worker_start", ["fork", "spawn", "forkserver"])
def test_workers_change_nothing_however_they_start(worker_start: str, tmp_path: Path) -> None:
    noise = "--data_options.noise=true"
    for name, workers in (("alone", 0), ("workers", 2)):
        more = {"workers": workers, "worker_start": worker_start, "data": "own_data:points"}
        outcome = job(tmp_path / name, 2, noise, **more).finish(LIMIT_S)
        assert outcome.status == 0, outcome
    assert losses(read_rows(tmp_path / "alone" / "metrics.jsonl")) == losses(
        read_rows(tmp_path / "workers" / "metrics.jsonl")
    )


@pytest.mark.long
@pytest.mark.parametrize("worker_start", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_an_interrupted_job_leaves_no_worker(worker_start: str, number: int, tmp_path: Path) -> None:
    more = {"workers": 2, "worker_start": worker_start, "data": "own_data:points", "steps": 1_000_000}
    running = job(tmp_path, 2, **more)
    end = time.monotonic() + LIMIT_S
    while not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").stat().st_size:
        assert time.monotonic() < end and running.process.poll() is None
        time.sleep(0.1)
    assert len(running.pids()) >= 2 * (1 + 2)
    running.process.send_signal(number)
    assert running.finish(LIMIT_S).status != 0


@pytest.mark.long
def test_a_rank_that_is_killed_takes_its_workers_along(tmp_path: Path) -> None:
    more = {"workers": 2, "data": "own_data:points", "steps": 1_000_000}
    running = job(tmp_path, 1, **more)
    end = time.monotonic() + LIMIT_S
    while not (tmp_path / "metrics.jsonl").exists():
        assert time.monotonic() < end and running.process.poll() is None
        time.sleep(0.1)
    for pid in running.pids():
        if b"-m\0trainer" in Path(f"/proc/{pid}/cmdline").read_bytes() and _is_rank(pid):
            os.kill(pid, signal.SIGKILL)
    assert running.finish(LIMIT_S).status != 0


def _is_rank(pid: int) -> bool:
    """Whether its parent is not of the same command: forked workers have their rank's."""
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    mine, theirs = (Path(f"/proc/{each}/cmdline").read_bytes() for each in (pid, parent))
    return mine != theirs
