"""Ranks as threads of one process, for tests: no launcher, no MPI, real collectives."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pycomm import _core
from pycomm.communicator import Communicator, World
from pycomm.errors import Timeout
from pycomm.features import check_transports
from pycomm.trace import Recording, wanted

R = TypeVar("R")


def run_threads(
    n: int,
    fn: Callable[..., R],
    *args: Any,
    timeout: float = 60.0,
    transport: str | None = None,
    progress: str = "inline",
    trace: str | os.PathLike[str] | None = None,
    nodes: Sequence[int] = (),
) -> list[R]:
    """Call `fn(comm, *args)` on n ranks, each a thread with a communicator of its own, and return their
    results by rank. Blocks.

    transport: "inproc" (copies messages), "inproc_mapped" (peers' memory is addressable too) or None for the
    best. progress: "inline" or "thread". trace: a file for the ranks' trace (pycomm/trace.py). nodes: a
    number for each rank; memory is addressable only between ranks of equal numbers, as it is on several
    machines. An exception of a rank breaks the communicators of the others and is raised here, the lowest
    rank's first cause. When not all ranks have returned after `timeout` seconds, `Timeout` is raised and says
    where each one is (the threads are left behind).

    >>> run_threads(3, lambda comm: comm.all_reduce(np.array([comm.rank])).item())
    [3, 3, 3]
    """
    check_transports([transport] if transport else [])
    world = _core.ThreadWorld(n)
    ranks = [_Rank(r, n, world, fn, args, transport, progress, trace, nodes) for r in range(n)]
    for rank in ranks:
        rank.start()
    end = time.monotonic() + timeout
    for rank in ranks:
        rank.join(max(0.0, end - time.monotonic()))
    stuck = [rank for rank in ranks if rank.is_alive()]
    failures = sorted((rank.failed_s, rank.number) for rank in ranks if rank.error is not None)
    if failures:
        first = ranks[failures[0][1]]
        assert first.error is not None
        raise first.error
    if stuck:
        places = "\n".join(f"rank {rank.number}:\n{rank.where()}" for rank in stuck)
        raise Timeout(f"{len(stuck)} of {n} ranks have not returned after {timeout} s\n{places}")
    return [rank.result for rank in ranks]


class _Rank(threading.Thread):
    def __init__(
        self,
        number: int,
        size: int,
        world: _core.ThreadWorld,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        transport: str | None,
        progress: str,
        trace: str | os.PathLike[str] | None,
        nodes: Sequence[int],
    ) -> None:
        super().__init__(name=f"rank {number}", daemon=True)
        self.number = number
        self.size = size
        self.world = world
        self.fn = fn
        self.args = args
        self.transports = [transport] if transport else []
        self.progress = progress
        self.trace = trace
        self.nodes = list(nodes)
        self.result: Any = None
        self.error: BaseException | None = None
        self.failed_s = 0.0

    def run(self) -> None:
        engine: _core.Engine | None = None
        comm: Communicator | None = None
        recording: Recording | None = None
        try:
            engine = _core.Engine.create(
                self.number,
                self.size,
                self.world.handles(),
                self.progress == "thread",
                self.transports,
                self.world,
                wanted(self.trace),
                self.nodes,
            )
            comm = Communicator(_core.Communicator(engine), World(engine, [0] * self.size, 1))
            recording = Recording.begin(comm, self.trace)
            if recording is not None:
                recording.of_this_thread()
            self.result = self.fn(comm, *self.args)
            if recording is not None:
                recording.end(None)
        except BaseException as error:
            self.failed_s = time.monotonic()
            self.error = error
            why = f"rank {self.number} raised {type(error).__name__}: {error}"
            self.world.abort(why)
            if comm is not None:
                comm.abort(why)
            if recording is not None:
                recording.end(why)
        finally:
            if engine is not None:
                engine.close()  # before the world that it stands on goes: tracebacks may hold it longer

    def where(self) -> str:
        frame = sys._current_frames().get(self.ident or 0)
        return "".join(traceback.format_stack(frame)[-4:]) if frame else "  (ended)\n"
