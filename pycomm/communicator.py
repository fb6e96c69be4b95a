"""A group of ranks and the collectives they call together.

Every collective takes C-contiguous host arrays of float64, float32, float16, bfloat16, int64, int32, uint8 or
int8: torch tensors, NumPy arrays, anything with the buffer protocol or DLPack. All ranks of a communicator
call the same collectives in the same order with the same arguments but the data. Common arguments:

op          "sum", "prod", "min", "max" or "avg" (a sum divided by the number of ranks; integers truncate)
codec       "none", "fp16" or "bf16": how values travel; the lossy ones serve sums and averages of float32 and
float64
algorithm   the name of one of `pycomm.info()["algorithms"]`; None chooses
timeout     seconds until the operation fails with `Timeout`; None: `PYCOMM_TIMEOUT_S`, 300
scale       multiplies the result of a sum or average of floating dtypes; equal on all ranks

All ranks end with the same bits, whatever the algorithm and codec. Errors of every call: `InvalidArgument`
before anything moves; `MismatchError` when ranks made different calls, `Timeout`, `TransportError` and
`Aborted`, after any of which the communicator is broken and later calls raise that first cause.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from pycomm import _core
from pycomm.errors import InvalidArgument
from pycomm.tensors import as_memory, count_of, new_like, part_count, shape_of
from pycomm.work import Work

T = TypeVar("T")


@dataclass
class World:
    """What the communicators of one engine share."""

    engine: _core.Engine
    nodes: Sequence[int]  # by world rank: a number that equals on ranks of one node
    cores: int  # that this rank has for itself
    next_context: int = 1  # of the next communicator made by split()
    splitting: threading.Lock = field(default_factory=threading.Lock)
    groups: weakref.WeakSet[Communicator] = field(default_factory=weakref.WeakSet)  # all of them


class Communicator:
    """Ranks that talk to each other. Made by `pycomm.init()` and `split()`; usable from any thread."""

    def __init__(self, core: _core.Communicator, world: World) -> None:
        self._core = core
        self._world = world
        mine = world.nodes[core.world_ranks[core.rank]]
        neighbours = [r for r, w in enumerate(core.world_ranks) if world.nodes[w] == mine]
        self.rank: int = core.rank
        self.size: int = core.size
        self.local_rank: int = neighbours.index(core.rank)
        self.local_size: int = len(neighbours)
        peers = {world.engine.transport_to(w) for r, w in enumerate(core.world_ranks) if r != core.rank}
        self._transport = "+".join(sorted(peers)) or "none"
        world.groups.add(self)

    def __repr__(self) -> str:
        return f"<pycomm.Communicator rank {self.rank} of {self.size}, transport {self.transport}>"

    # ---- collectives that block

    def all_reduce(
        self,
        x: T,
        op: str = "sum",
        out: T | None = None,
        codec: str | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        scale: float = 1.0,
    ) -> T:
        """Reduce `x` over all ranks; every rank gets the whole result. Blocks.

        x: any shape; overwritten with the result unless `out` (same dtype and element count) is given.
        Returns the array that holds the result. Default algorithms: ring (Patarasuk and Yuan 2009), recursive
        doubling (Thakur, Rabenseifner, Gropp 2005) for small arrays, direct for 16-bit data and wires.

        >>> comm.all_reduce(np.ones(3, np.float32))   # on 2 ranks
        array([2., 2., 2.], dtype=float32)
        """
        self._run("all_reduce", x, out, op, 0, scale, codec, algorithm, timeout)
        return x if out is None else out

    def reduce_scatter(
        self,
        x: T,
        op: str = "sum",
        out: T | None = None,
        codec: str | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        scale: float = 1.0,
    ) -> T:
        """Reduce `x` over all ranks; each rank gets its part of the result. Blocks.

        x: any shape, left as it is. The parts are those of `numpy.array_split(x.ravel(), size)`: sizes differ
        by at most one. `out`: an array of that many elements (it may be that very part of x); None makes a
        one-dimensional one. Returns it.
        """
        x = as_memory(x)
        out = self._scattered(x) if out is None else out
        self._run("reduce_scatter", x, out, op, 0, scale, codec, algorithm, timeout)
        return out

    def all_gather(
        self, x: T, out: T | None = None, algorithm: str | None = None, timeout: float | None = None
    ) -> T:
        """Gather every rank's `x`, on every rank. Blocks.

        Without `out`, x has the same shape (d0, ...) on all ranks and the result is (size * d0, ...), in
        order of rank; 0-d arrays are stacked. With `out`, x is part `rank` of `numpy.array_split(out.ravel(),
        size)` (and may be that very memory). Returns the result.
        """
        x = as_memory(x)
        out = self._gathered(x) if out is None else out
        self._run("all_gather", x, out, "sum", 0, 1.0, None, algorithm, timeout)
        return out

    def broadcast(self, x: T, root: int = 0, algorithm: str | None = None, timeout: float | None = None) -> T:
        """Overwrite `x` on every rank with rank `root`'s. Blocks. Returns x."""
        self._run("broadcast", x, None, "sum", root, 1.0, None, algorithm, timeout)
        return x

    def send(self, x: Any, peer: int, timeout: float | None = None) -> None:
        """Send `x` to rank `peer`, which must receive it. Blocks until x may be rewritten. Messages of a pair
        keep their order."""
        self._run("send", x, None, "sum", peer, 1.0, None, None, timeout)

    def recv(self, x: T, peer: int, timeout: float | None = None) -> T:
        """Overwrite `x` with what rank `peer` sends: the same dtype and element count, else `MismatchError`.
        Blocks. Returns x."""
        self._run("recv", x, None, "sum", peer, 1.0, None, None, timeout)
        return x

    def barrier(self, timeout: float | None = None) -> None:
        """Wait until every rank has come here. Blocks. (Dissemination: Hensgen, Finkel, Manber 1988.)"""
        self._run("barrier", None, None, "sum", 0, 1.0, None, None, timeout)

    # ---- the same without blocking; the arrays belong to the operation until it is done

    def all_reduce_async(
        self,
        x: T,
        op: str = "sum",
        out: T | None = None,
        codec: str | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        scale: float = 1.0,
    ) -> Work[T]:
        """Start `all_reduce`; does not block."""
        result = x if out is None else out
        return self._start("all_reduce", x, out, op, 0, scale, codec, algorithm, timeout, result)

    def reduce_scatter_async(
        self,
        x: T,
        op: str = "sum",
        out: T | None = None,
        codec: str | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        scale: float = 1.0,
    ) -> Work[T]:
        """Start `reduce_scatter`; does not block."""
        x = as_memory(x)
        out = self._scattered(x) if out is None else out
        return self._start("reduce_scatter", x, out, op, 0, scale, codec, algorithm, timeout, out)

    def all_gather_async(
        self, x: T, out: T | None = None, algorithm: str | None = None, timeout: float | None = None
    ) -> Work[T]:
        """Start `all_gather`; does not block."""
        x = as_memory(x)
        out = self._gathered(x) if out is None else out
        return self._start("all_gather", x, out, "sum", 0, 1.0, None, algorithm, timeout, out)

    def broadcast_async(
        self, x: T, root: int = 0, algorithm: str | None = None, timeout: float | None = None
    ) -> Work[T]:
        """Start `broadcast`; does not block."""
        return self._start("broadcast", x, None, "sum", root, 1.0, None, algorithm, timeout, x)

    def send_async(self, x: Any, peer: int, timeout: float | None = None) -> Work[None]:
        """Start `send`; does not block."""
        return self._start("send", x, None, "sum", peer, 1.0, None, None, timeout, None)

    def recv_async(self, x: T, peer: int, timeout: float | None = None) -> Work[T]:
        """Start `recv`; does not block."""
        return self._start("recv", x, None, "sum", peer, 1.0, None, None, timeout, x)

    def barrier_async(self, timeout: float | None = None) -> Work[None]:
        """Start `barrier`; does not block."""
        return self._start("barrier", None, None, "sum", 0, 1.0, None, None, timeout, None)

    # ---- groups

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        """Make a communicator of the ranks that pass the same `color` (0 or more), in order of (key, rank).
        Blocks; all ranks call it.

        Ranks that pass None join none and get None.
        """
        if color is not None and not (isinstance(color, (int, np.integer)) and 0 <= color < 2**63):
            raise InvalidArgument(
                f"color is {color!r}; expected a whole number, 0 or more, or None to join no group"
            )
        if not (isinstance(key, (int, np.integer)) and -(2**63) <= key < 2**63):
            raise InvalidArgument(f"key is {key!r}; expected a whole number of 64 bits")
        if not self._world.splitting.acquire(blocking=False):
            raise InvalidArgument("another thread is in split(): do one after the other, on all ranks")
        try:
            return self._split(color, key)
        finally:
            self._world.splitting.release()

    def _split(self, color: int | None, key: int) -> Communicator | None:
        mine = np.array([-1 if color is None else color, key, self._world.next_context], np.int64)
        rows = self.all_gather(mine).reshape(self.size, 3)
        context = int(rows[:, 2].max())
        self._world.next_context = context + 1  # the groups are disjoint: one context serves them all
        members = sorted(
            (r for r in range(self.size) if rows[r, 0] == mine[0]), key=lambda r: (rows[r, 1], r)
        )
        world_ranks = [self._core.world_ranks[r] for r in members]
        segments = self.all_gather(np.array([self._core.preferred_segment_bytes(world_ranks)], np.int64))
        if color is None:
            return None
        core = self._core.subgroup(
            context, members.index(self.rank), world_ranks, int(segments[members].min())
        )
        return Communicator(core, self._world)

    # ---- state

    @property
    def transport(self) -> str:
        """The transport to the other ranks: its name, several joined by "+", or "none" on a single rank."""
        return self._transport

    @property
    def broken(self) -> Exception | None:
        """What broke this communicator; None while it works."""
        error: Exception | None = self._core.error()
        return error

    @property
    def progress(self) -> str:
        """ "thread": asynchronous operations advance by themselves; "inline": only while some call waits."""
        return "thread" if self._world.engine.has_progress_thread else "inline"

    @property
    def cores(self) -> int:
        """How many cores this rank has for itself (at least 1)."""
        return self._world.cores

    def abort(self, why: str) -> None:
        """Break this communicator on all ranks: pending and later operations raise `Aborted` with `why`. Does
        not block."""
        self._core.abort(why)

    # ---- helpers

    def _run(
        self,
        collective: str,
        x: Any,
        out: Any,
        op: str,
        root: int,
        scale: float,
        codec: str | None,
        algorithm: str | None,
        timeout: float | None,
    ) -> None:
        self._core.run(
            collective,
            as_memory(x),
            as_memory(out),
            op,
            root,
            scale,
            codec or "",
            algorithm or "",
            _checked_timeout(timeout),
        )

    def _start(
        self,
        collective: str,
        x: Any,
        out: Any,
        op: str,
        root: int,
        scale: float,
        codec: str | None,
        algorithm: str | None,
        timeout: float | None,
        result: T,
    ) -> Work[T]:
        work = self._core.start(
            collective,
            as_memory(x),
            as_memory(out),
            op,
            root,
            scale,
            codec or "",
            algorithm or "",
            _checked_timeout(timeout),
            True,
        )
        return Work(self._core, work, result)

    def _scattered(self, x: Any) -> Any:
        return new_like(x, (part_count(count_of(x), self.size, self.rank),))

    def _gathered(self, x: Any) -> Any:
        shape = shape_of(x)
        return new_like(x, (self.size * shape[0], *shape[1:]) if shape else (self.size,))


def _checked_timeout(timeout: float | None) -> float:
    if timeout is None:
        return 0.0
    if not timeout > 0:
        raise InvalidArgument(f"timeout is {timeout}; expected seconds above 0, or None")
    return timeout
