"""Traces: what is in the file, on which clock, and what happens when it cannot be written."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

import pycomm
from pycomm import Communicator, _core, trace_span
from pycomm.communicator import World
from pycomm.testing import run_threads
from pycomm.trace import Clock, Recording
from tests.traces import TraceFile

pytestmark = pytest.mark.timeout(60)


def some_of_everything(comm: Communicator) -> None:
    for step in range(3):
        with trace_span("step", step=step):
            comm.all_reduce(np.ones(1000, np.float32), algorithm="direct")
            work = comm.all_reduce_async(np.ones(70_001), algorithm="ring", codec="fp16")
            with trace_span("compute"):
                np.sort(np.arange(1000))
            work.wait()
    comm.broadcast(np.ones(5, np.int64), root=1, algorithm="binomial")
    if comm.rank == 0:
        comm.send(np.ones(3, np.uint8), 2)
    if comm.rank == 2:
        comm.recv(np.ones(3, np.uint8), 0)
    comm.barrier()


@pytest.fixture(scope="module", params=["inline", "thread"])
def traced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TraceFile:
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    run_threads(3, some_of_everything, trace=path, progress=request.param)
    assert [file.name for file in path.parent.iterdir()] == ["trace.json"]
    return TraceFile(path)


def test_every_rank_is_a_process_and_every_thread_a_row(traced: TraceFile) -> None:
    assert [name.split(" on ")[0] for name in traced.processes.values()] == ["rank 0", "rank 1", "rank 2"]
    for rank, threads in traced.threads.items():
        assert threads in ([f"rank {rank}"], [f"rank {rank}", "progress"])
        steps = traced.span(rank, "step")
        assert [step.args for step in steps] == [{"step": 0}, {"step": 1}, {"step": 2}]
        for step, compute in zip(steps, traced.span(rank, "compute"), strict=True):
            assert step.begin <= compute.begin <= compute.end <= step.end


def test_operations_are_named_and_described(traced: TraceFile) -> None:
    of_rank_2 = sorted((o for o in traced.operations if o.rank == 2), key=lambda o: o.begin)
    assert [operation.name for operation in of_rank_2] == [
        *["all_reduce 4 kB direct", "all_reduce 560 kB ring"] * 3,
        "broadcast 40 B binomial",
        "recv from 0 3 B",
        "barrier dissemination",
    ]
    ring = of_rank_2[1].args
    sent = ring.pop("bytes_sent")
    # A ring passes 2 (N-1) of N parts on, here as 16 bits.
    assert abs(sent - 2 * 2 / 3 * 70_001 * 2) < 16
    assert ring == {
        "collective": "all_reduce", "communicator": 0, "sequence": 3, "dtype": "f64", "count": 70_001,
        "bytes": 560_008, "algorithm": "ring", "codec": "fp16",
    }  # fmt: skip
    assert of_rank_2[6].args["root"] == 1 and of_rank_2[7].args["peer"] == 0
    assert all("error" not in operation.args for operation in traced.operations)


def test_a_rank_waits_on_its_own_row_for_a_named_operation(traced: TraceFile) -> None:
    for operation in traced.operations:
        call = {name: operation.args[name] for name in ("collective", "communicator", "sequence")}
        waits = [w for w in traced.span(operation.rank, "wait") if w.args == call]
        assert len(waits) == 1 and waits[0].thread == f"rank {operation.rank}"
        assert waits[0].end >= operation.end
    assert all(span.args == {} for span in traced.spans if span.name in ("drive", "stalled"))
    assert {span.rank for span in traced.spans if span.name == "drive"} == {0, 1, 2}


def test_a_wait_for_a_message_is_not_one_for_an_operation(tmp_path: Path) -> None:
    def rank(comm: Communicator) -> None:
        if comm.rank == 0:
            comm.mailbox(1).send(1, np.zeros(300_000))
        else:
            comm.mailbox(1).recv(0)

    run_threads(2, rank, trace=tmp_path / "trace.json")
    waits = [span.args for span in TraceFile(tmp_path / "trace.json").span(0, "wait")]
    assert {} in waits and all(args.get("collective") != "" for args in waits), waits


def test_the_sides_of_a_collective_overlap_in_time(traced: TraceFile) -> None:
    collectives = traced.collectives()
    assert len(collectives) == 3 * 2 + 2
    slack = 2 * max(fact["clock_error_ns"] for fact in traced.facts.values())
    for call, sides in collectives.items():
        assert [side.rank for side in sides] == [0, 1, 2]
        if call[0] == "broadcast":  # it ends where nobody waits for more
            continue
        assert max(side.started for side in sides) <= min(side.end for side in sides) + slack, call


def test_bounds_of_the_clocks_are_said(traced: TraceFile) -> None:
    for rank, fact in traced.facts.items():
        assert (fact["dropped"], len(fact["clock_ahead_ns"])) == (0, 2)
        # One clock in truth.
        assert all(abs(ahead) <= fact["clock_error_ns"] for ahead in fact["clock_ahead_ns"])
        assert (fact["clock_error_ns"] == 0) == (rank == 0)


def test_ranks_with_wrong_clocks_lie_right_within_the_bound(tmp_path: Path) -> None:
    """Clocks that are ahead and fast: marks carry the true time."""
    ahead_s, fast = [0.0, 7.5, -3600.0], [0.0, 5e-3, -5e-3]

    def clock_of(rank: int) -> Clock:
        start = time.monotonic_ns()
        return lambda true=None: (
            start
            + round(
                ((time.monotonic_ns() if true is None else true) - start) * (1 + fast[rank])
                + ahead_s[rank] * 1e9
            )
        )

    def marked(comm: Communicator) -> None:
        clock = clock_of(comm.rank)
        recording = Recording.begin(comm, tmp_path / "trace.json", clock)
        for _ in range(20):
            comm.barrier()
            true = time.monotonic_ns()
            recording.core.span("mark", clock(true), clock(true), f'"true":{true}')
            time.sleep(0.002)
        recording.end(None)

    _on_engines(3, marked)
    trace = TraceFile(tmp_path / "trace.json")
    zero = {mark.args["true"] - mark.begin for mark in trace.span(0, "mark")}
    assert len(zero) == 1
    for rank in (1, 2):
        bound = trace.facts[rank]["clock_error_ns"]
        marks = trace.span(rank, "mark")
        assert len(marks) == 20 and 0 < bound < 1e9  # far less than clocks are ahead
        for mark in marks:
            # The bound is in units of a clock that is fast; times are rounded.
            assert abs(mark.begin + min(zero) - mark.args["true"]) <= bound * 1.01 + 2


def _on_engines(size: int, fn: object) -> None:
    """run_threads, with memory for a trace that nobody has begun."""
    world = _core.ThreadWorld(size)
    errors: list[BaseException] = []

    def rank(number: int) -> None:
        try:
            engine = _core.Engine.create(number, size, world.handles(), False, [], world, 1000)
            fn(Communicator(_core.Communicator(engine), World(engine, [0] * size, 1)))
            engine.close()
        except BaseException as error:
            errors.append(error)
            world.abort(str(error))

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert not errors, errors


def test_without_a_trace_nothing_is_recorded() -> None:
    def rank(comm: Communicator) -> tuple[int, bool]:
        some_of_everything(comm)
        return comm._world.engine.trace.recorded, trace_span("one") is trace_span("two")

    assert run_threads(3, rank) == [(0, True)] * 3


def test_threads_are_named_as_in_python_and_odd_words_survive(tmp_path: Path) -> None:
    def rank(comm: Communicator) -> None:
        thread = threading.Thread(target=lambda: comm.barrier(), name='a "loader" \\ ☃')
        thread.start()
        thread.join()
        with trace_span('odd\n"name"\\', what="ö", path=Path("x")):
            pass

    run_threads(2, rank, trace=tmp_path / "trace.json")
    trace = TraceFile(tmp_path / "trace.json")
    for number in range(2):
        assert trace.span(number, "wait")[0].thread == 'a "loader" \\ ☃'
        assert trace.span(number, 'odd\n"name"\\')[0].args == {"what": "ö", "path": "x"}


def test_what_does_not_fit_is_counted_and_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCOMM_TRACE_EVENTS", "5")

    def rank(comm: Communicator) -> None:
        for number in range(7 if comm.rank == 0 else 5):
            with trace_span("span", number=number):
                pass

    with pytest.warns(UserWarning, match=r"2 on rank 0\): set PYCOMM_TRACE_EVENTS higher"):
        run_threads(2, rank, trace=tmp_path / "trace.json")
    trace = TraceFile(tmp_path / "trace.json")
    assert [span.args["number"] for span in trace.span(0, "span")] == [0, 1, 2, 3, 4]
    assert len(trace.span(1, "span")) == 5
    assert [trace.facts[rank]["dropped"] for rank in (0, 1)] == [2, 0]
    assert trace.labels == {0: "2 events dropped"}


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_a_wrong_number_of_events_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYCOMM_TRACE_EVENTS", value)
    with pytest.raises(pycomm.InvalidArgument, match=f"PYCOMM_TRACE_EVENTS is '{value}'"):
        run_threads(1, lambda comm: None, trace=tmp_path / "trace.json")


@pytest.mark.parametrize(("place", "why"), [("no/such/trace.json", "No such file"), (".", "it is a folder")])
def test_a_file_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path, place: str, why: str) -> None:
    entered: list[int] = []
    with pytest.raises(pycomm.InvalidArgument, match=rf"rank 0 cannot write '.*': {why}"):
        run_threads(3, lambda comm: entered.append(comm.rank), trace=tmp_path / place)
    assert entered == [] and list(tmp_path.iterdir()) == []


def test_after_a_failure_every_rank_writes_its_own_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = threading.Barrier(3)

    def rank(comm: Communicator) -> None:
        comm.barrier()
        with trace_span("before"):
            pass
        comm.barrier()  # all have recorded it
        if comm.rank == 1:
            started.wait(10)
            raise KeyError("lost")
        work = comm.all_reduce_async(np.ones(3))
        started.wait(10)
        work.wait()

    with pytest.raises(KeyError, match="lost"):
        run_threads(3, rank, trace=tmp_path / "trace.json")
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == [f"trace.rank{rank}.json" for rank in range(3)]
    said = capsys.readouterr().err
    for number in range(3):
        trace = TraceFile(tmp_path / f"trace.rank{number}.json")
        assert list(trace.processes) == [number] and len(trace.span(number, "before")) == 1
        assert f"its events are in {tmp_path}/trace.rank{number}.json" in said
        failed = [operation for operation in trace.operations if "error" in operation.args]
        assert [o.args["collective"] for o in failed] == ([] if number == 1 else ["all_reduce"])
        assert all("rank 1 raised KeyError" in o.args["error"] for o in failed)


def test_a_file_that_fails_at_the_end_is_said_and_ranks_write_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def rank(comm: Communicator) -> None:
        comm.barrier()
        if comm.rank == 0:
            (tmp_path / "trace.json").mkdir()
        comm.barrier()

    run_threads(2, rank, trace=tmp_path / "trace.json")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "trace.json", "trace.rank0.json", "trace.rank1.json",
    ]  # fmt: skip
    assert "Is a directory" in capsys.readouterr().err
    assert len(TraceFile(tmp_path / "trace.rank1.json").operations) == 2
