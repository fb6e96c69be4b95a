"""A trace of all ranks on one clock, for Perfetto (ui.perfetto.dev) and chrome://tracing.

    PYCOMM_TRACE=trace.json python -m pycomm.launch -n 4 script.py

or `pycomm.init(trace="trace.json")`. The file has a process per rank, in it a row per thread and rows of
operations: from submitted to finished, with the time spent queued before the first step. Threads show when
they wait for an operation, when they drive (advance all that is in flight), and when they are stalled because
no message comes. Spans of one's own go beside them:

    with pycomm.trace_span("forward", step=3):
        ...

Events stay in memory, at most `PYCOMM_TRACE_EVENTS` (1048576) on each rank; later ones are dropped, counted,
and warned of. `shutdown()`, or the end of the program, is then collective: rank 0 gathers all events and
writes the file. Where that fails, because the world is broken or a rank is gone, every rank that still runs
writes its own, `trace.rank3.json`.

The clock is rank 0's. Each rank measures its own against it at the start and at the end, by the fastest of
some round trips (Cristian 1989), and clocks are taken to drift evenly in between. Half of that round trip
bounds the error; the file says it, under otherData.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from pycomm import _core
from pycomm.communicator import Communicator
from pycomm.errors import InvalidArgument, PycommError
from pycomm.exchange import exchange

Clock = Callable[[], int]  # nanoseconds

DEFAULT_EVENTS = 1 << 20
ROUND_TRIPS = 40
FAREWELL_S = 2.0  # what a failed rank gives the others to save their events
_CHUNK = 8192  # events in one message


class _Current(threading.local):
    """The recording of this thread: of the thread itself if it is a rank, else of the process."""

    recording: Recording | None = None


_current = _Current()
_NOTHING = contextlib.nullcontext()


def trace_span(name: str, **arguments: Any) -> AbstractContextManager[None]:
    """A context manager: what runs within it becomes a span of this thread in the trace, if one is written.
    Does not block.

    arguments: shown beside the span; whatever JSON can hold, of the rest the text.

    >>> with pycomm.trace_span("forward", step=3):
    ...     loss = model(inputs)
    """
    recording = _current.recording
    return _NOTHING if recording is None else _Span(recording, name, arguments)


class _Span:
    __slots__ = ("_arguments", "_begin_ns", "_name", "_recording")

    def __init__(self, recording: Recording, name: str, arguments: dict[str, Any]) -> None:
        self._recording = recording
        self._name = name
        self._arguments = arguments

    def __enter__(self) -> None:
        self._begin_ns = self._recording.clock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        arguments = json.dumps(self._arguments, default=str)[1:-1]
        self._recording.core.span(self._name, self._begin_ns, self._recording.clock(), arguments)


def wanted(path: str | os.PathLike[str] | None) -> int:
    """How many events a rank has to hold for a trace in that file; 0 without one."""
    if path is None or not os.fspath(path):
        return 0
    value = os.environ.get("PYCOMM_TRACE_EVENTS", "") or str(DEFAULT_EVENTS)
    if not value.isdecimal() or int(value) == 0:
        raise InvalidArgument(f"PYCOMM_TRACE_EVENTS is '{value}'; expected a number of events of at least 1")
    return int(value)


@dataclass(frozen=True)
class Reading:
    """A rank's clock against rank 0's: how much it is ahead, at a time of its own, and the bound of the
    error."""

    at_ns: int
    ahead_ns: int
    error_ns: int


def read_clock(comm: Communicator, clock: Clock) -> Reading:
    """Measure this rank's clock against rank 0's. Collective; blocks."""
    message = np.zeros(1, np.int64)
    if comm.rank == 0:
        for peer in range(1, comm.size):
            for _ in range(ROUND_TRIPS):
                comm.recv(message, peer)
                message[0] = clock()
                comm.send(message, peer)
        return Reading(clock(), 0, 0)
    best: Reading | None = None
    for _ in range(ROUND_TRIPS):
        sent = clock()
        comm.send(message, 0)
        comm.recv(message, 0)
        received = clock()
        middle = (sent + received) // 2
        error = (received - sent + 1) // 2
        if best is None or error < best.error_ns:
            best = Reading(middle, middle - int(message[0]), error)
    assert best is not None
    return best


class Recording:
    """What one rank records, from the start to the file. `clock` must be that of time.monotonic_ns(), which
    the engine uses too, for operations to lie right."""

    def __init__(self, world: Communicator, path: str | os.PathLike[str] | None, clock: Clock) -> None:
        comm = world.split(0)  # of our own: nobody else's failure ends it
        assert comm is not None
        self.core = world._world.engine.trace
        self.clock = clock
        self._world = world
        self._comm = comm
        self._patience_s = world._world.engine.timeout_s * comm.size  # rank 0 takes one rank after another
        path = Path(os.path.abspath(path or ""))
        complaint = _complaint(path) if comm.rank == 0 else ""
        plan = exchange(comm, {"path": str(path), "epoch_ns": clock(), "complaint": complaint})[0]
        if plan["complaint"]:
            raise InvalidArgument(f"trace: rank 0 cannot write '{plan['path']}': {plan['complaint']}")
        self.path = Path(plan["path"])
        self._epoch_ns: int = plan["epoch_ns"]  # on rank 0's clock
        self._first = read_clock(comm, clock)
        self.core.start(world._world.engine.trace_events)

    @classmethod
    def begin(
        cls, world: Communicator, path: str | os.PathLike[str] | None, clock: Clock = time.monotonic_ns
    ) -> Recording | None:
        """Start to record, if rank 0 wants a trace. Collective; blocks. Raises InvalidArgument, on all ranks,
        when rank 0 cannot write the file."""
        return cls(world, path, clock) if world._world.engine.trace_events else None

    def of_this_thread(self) -> None:
        """Let `trace_span` in the calling thread record here: it is a rank."""
        _current.recording = self

    def of_this_process(self) -> None:
        """Let `trace_span` in all threads record here."""
        _Current.recording = self

    def end(self, failure: str | None) -> None:
        """Stop, and write. Collective and blocks, except after a `failure` of this rank: then its events are
        written beside, and the others get a moment to do the same."""
        if _Current.recording is self:
            _Current.recording = None
        last: Reading | None = None
        self.core.stop()
        try:
            if failure is not None:
                self._world.abort(failure)  # whoever waits for us comes here too
                self._save_own(failure, None)
            healthy = np.array([failure is None], np.uint8)
            self._comm.all_reduce(healthy, op="min", timeout=FAREWELL_S if failure else self._patience_s)
            if healthy[0]:
                last = read_clock(self._comm, self.clock)
                self._gather(last)
                return
            why = failure or "another rank failed"
        except (PycommError, OSError) as error:
            self._comm.abort(f"rank {self._comm.rank} gave up gathering the trace: {error}")
            why = failure or str(error)
        if failure is None:
            self._save_own(why, last)
        if self._comm.broken is None:
            with contextlib.suppress(PycommError):  # the others take too long: they were given their time
                self._comm.barrier(timeout=FAREWELL_S)

    # ---- the file

    def _gather(self, last: Reading) -> None:
        """Brings all ranks' events into one file. Collective; all ranks return when it is there."""
        comm = self._comm
        if comm.rank == 0:
            ranks = [self._own(last), *(self._received(peer) for peer in range(1, comm.size))]
            _warn_of_dropped(_write(self.path, ranks))
        else:
            for chunk in self._own(last):
                _send(comm, chunk, self._patience_s)
            _send(comm, b"", self._patience_s)
        comm.barrier(timeout=self._patience_s)

    def _received(self, peer: int) -> Iterator[bytes]:
        while chunk := _recv(self._comm, peer, self._patience_s):
            yield chunk

    def _save_own(self, why: str, last: Reading | None) -> None:
        own = self.path.with_name(f"{self.path.stem}.rank{self._comm.rank}{self.path.suffix}")
        try:
            _warn_of_dropped(_write(own, [self._own(last or self._first)]))
            said = f"its events are in {own}"
        except OSError as error:
            said = f"its events are lost: {error}"
        print(f"pycomm: no trace of all ranks on rank {self._comm.rank} ({why}); {said}", file=sys.stderr)

    def _own(self, last: Reading) -> Iterator[bytes]:
        """This rank's part: first what is to be known of it, then events."""
        count, rank = self.core.recorded, self._comm.rank
        zero_ns, rate = _common_clock(self._first, last, self._epoch_ns)
        facts = {
            "rank": rank,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "events": count,
            "dropped": self.core.dropped,
            "clock_ahead_ns": [self._first.ahead_ns, last.ahead_ns],  # at the start, at the end
            "clock_error_ns": max(self._first.error_ns, last.error_ns),  # at most
        }
        yield json.dumps(facts).encode()
        yield _rows(rank, facts, self.core.threads)
        for first in range(0, count, _CHUNK):
            yield self.core.render(first, first + _CHUNK, rank, zero_ns, rate)


def _common_clock(first: Reading, last: Reading, epoch_ns: int) -> tuple[int, float]:
    """When this rank's clock shows what is zero in the trace, and how fast the trace's runs beside it."""
    apart = last.at_ns - first.at_ns
    drift = (last.ahead_ns - first.ahead_ns) / apart if apart > 0 else 0.0
    rate = 1.0 - drift
    since_epoch = first.at_ns - first.ahead_ns - epoch_ns  # on rank 0's clock
    return first.at_ns - round(since_epoch / rate), rate


def _rows(rank: int, facts: dict[str, Any], threads: dict[int, str]) -> bytes:
    """The events that name and order a rank's rows."""
    label = f"rank {rank} on {facts['host']}"
    named: list[tuple[str, int, dict[str, Any]]] = [
        ("process_name", 0, {"name": label}),
        ("process_sort_index", 0, {"sort_index": rank}),
    ]
    if facts["dropped"]:
        named.append(("process_labels", 0, {"labels": f"{facts['dropped']} events dropped"}))
    for order, (thread, name) in enumerate(sorted(threads.items(), key=lambda item: _order(item[1]))):
        named.append(("thread_name", thread, {"name": name or f"thread {thread}"}))
        named.append(("thread_sort_index", thread, {"sort_index": order}))
    events = (
        {"ph": "M", "pid": rank, "tid": thread, "name": what, "args": arguments}
        for what, thread, arguments in named
    )
    return ",\n".join(map(json.dumps, events)).encode()


def _order(name: str) -> tuple[bool, bool, str]:
    return (name != "main", name == "progress", name)


def _write(path: Path, ranks: Iterable[Iterator[bytes]]) -> list[dict[str, Any]]:
    """Writes the file in one stroke, as seen from outside; returns the ranks' facts."""
    partial = _partial(path)
    facts = []
    try:
        with open(partial, "wb") as file:
            file.write(b'{"traceEvents": [')
            for number, part in enumerate(ranks):
                facts.append(json.loads(next(part)))
                file.write(b",\n" if number else b"\n")
                file.writelines(part)
            tail = {"displayTimeUnit": "ms", "otherData": {"pycomm": _core.__version__, "ranks": facts}}
            file.write(b"\n],\n" + json.dumps(tail)[1:].encode() + b"\n")
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return facts


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def _warn_of_dropped(facts: list[dict[str, Any]]) -> None:
    dropped = {fact["rank"]: fact["dropped"] for fact in facts if fact["dropped"]}
    if dropped:
        shown = ", ".join(f"{count} on rank {rank}" for rank, count in dropped.items())
        warnings.warn(
            f"the trace lacks its last events ({shown}): set PYCOMM_TRACE_EVENTS higher", stacklevel=2
        )


def _complaint(path: Path) -> str:
    """Why this rank cannot write that file; empty if it can."""
    if path.is_dir():
        return "it is a folder"
    try:
        _partial(path).touch()
        _partial(path).unlink()
    except OSError as error:
        return error.strerror or str(error)
    return ""


# ---- bytes whose number only the sender knows


def _send(comm: Communicator, data: bytes, timeout_s: float) -> None:
    comm.send(np.array([len(data)], np.int64), 0, timeout=timeout_s)
    if data:
        comm.send(np.frombuffer(data, np.uint8).copy(), 0, timeout=timeout_s)


def _recv(comm: Communicator, peer: int, timeout_s: float) -> bytes:
    size = comm.recv(np.empty(1, np.int64), peer, timeout=timeout_s)
    if not size[0]:
        return b""
    return comm.recv(np.empty(int(size[0]), np.uint8), peer, timeout=timeout_s).tobytes()
