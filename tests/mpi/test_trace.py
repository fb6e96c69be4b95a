"""Traces of several processes: one file of all ranks, and what is left when a job fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import run, script
from tests.traces import TraceFile

pytestmark = pytest.mark.timeout(90)

HEAD = """
    import os, sys
    import numpy as np
    import pycomm
    comm = pycomm.init()
"""
FAILURE = (
    HEAD
    + """
    comm.barrier()
    if comm.rank == 1:
        raise KeyError("lost")
    comm.all_reduce(np.ones(3))
"""
)


def test_a_job_leaves_one_trace_of_all_ranks(tmp_path: Path) -> None:
    program = (
        HEAD
        + """
    os.chdir("/")  # the file is where it was asked for
    for step in range(4):
        with pycomm.trace_span("step", step=step):
            comm.all_reduce(np.ones(50_000), algorithm="ring")
    """
    )
    path = tmp_path / "trace.json"
    env = {"PYCOMM_TRACE": str(path), "PYCOMM_PROGRESS": "thread"}
    outcome = run(3, script(tmp_path, program), limit_s=40, env=env)
    assert outcome.status == 0, outcome
    trace = TraceFile(path)
    assert all(threads == ["main", "progress"] for threads in trace.threads.values())
    collectives = trace.collectives()
    assert len(collectives) == 4 and len({fact["process"] for fact in trace.facts.values()}) == 3
    slack = 2 * max(fact["clock_error_ns"] for fact in trace.facts.values())
    for sides in collectives.values():
        assert [side.rank for side in sides] == [0, 1, 2]
        assert max(side.started for side in sides) <= min(side.end for side in sides) + slack
        for side in sides:
            step = trace.span(side.rank, "step")[side.args["sequence"] - 2]  # init() made two calls
            assert step.begin <= side.begin <= side.end <= step.end and step.thread == "main"


@pytest.mark.parametrize("ending", ["an exception", "abort"])
def test_a_failed_job_leaves_a_trace_of_each_rank(ending: str, tmp_path: Path) -> None:
    program = (
        FAILURE if ending == "an exception" else FAILURE.replace('raise KeyError("lost")', "pycomm.abort(3)")
    )
    env = {"PYCOMM_TRACE": str(tmp_path / "trace.json")}
    outcome = run(2, script(tmp_path, program), limit_s=40, env=env)
    assert outcome.status != 0, outcome
    for rank in range(2):
        own = tmp_path / f"trace.rank{rank}.json"
        assert f"its events are in {own}" in outcome.stderr, outcome
        barriers = [o for o in TraceFile(own).operations if o.args["collective"] == "barrier"]
        assert len(barriers) == 1
    assert not (tmp_path / "trace.json").exists()


def test_a_trace_that_cannot_be_written_ends_the_job_at_the_start(tmp_path: Path) -> None:
    env = {"PYCOMM_TRACE": str(tmp_path / "none" / "trace.json")}
    outcome = run(2, script(tmp_path, HEAD + '    print("trained")'), limit_s=40, env=env)
    assert outcome.status != 0 and outcome.stdout == "", outcome
    assert "InvalidArgument: trace: rank 0 cannot write" in outcome.stderr, outcome
