"""The limit that machines set, measured beside the collectives: memory on one node, the wire between nodes.

*Memory*: how fast all ranks together rewrite buffers of the same size in place. Rewriting S bytes reads and
writes each once, so n ranks move 2nS; a collective must move at least its `traffic(n)` times S. Below about
1 MB the number says more about NumPy's call than about memory.

*The wire*: one rank of each node streams, over a plain TCP socket to the next node, the bytes that must cross
a node's link at the least, all nodes at once.
"""

from __future__ import annotations

import select
import socket
from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import numpy as np

from bench.operations import Operation
from bench.ranks import Ranks, Times, own_address
from bench.timing import Contender, percentiles

NAME = "roofline"
STREAM_BUFFER = 1 << 20
PATIENCE_S = 60.0


class Limit(ABC):
    """What a collective of an operation and a size takes at the least."""

    of: str  # what limits

    @abstractmethod
    def contender(self, operation: Operation, size_bytes: int) -> Contender:
        """What is timed."""

    @abstractmethod
    def row(self, operation: Operation, size_bytes: int, times: Times) -> dict[str, Any]:
        """The bandwidth found, and the collective's least time at it."""

    @abstractmethod
    def close(self) -> None:
        """Gives back what the constructor took."""


def limit(ranks: Ranks) -> Limit:
    """The limit of these ranks. Collective."""
    return Wire(ranks) if ranks.nodes() > 1 else Memory(ranks.size)


class Memory(Limit):
    of = "memory"

    def __init__(self, size: int) -> None:
        self._size = size

    def contender(self, operation: Operation, size_bytes: int) -> Contender:
        """Inverts the bits of a buffer of this rank's own."""
        words = np.empty(max(1, size_bytes // 8), np.uint64)
        return Contender(NAME, lambda: np.invert(words, out=words), lambda: words.fill(1))

    def row(self, operation: Operation, size_bytes: int, times: Times) -> dict[str, Any]:
        moved = 2 * self._size * size_bytes
        share = operation.traffic(self._size) * size_bytes / moved
        return _row(self.of, operation, size_bytes, moved, times, share)

    def close(self) -> None:
        """There is nothing."""


class Wire(Limit):
    """Sockets between the first ranks of neighbouring nodes."""

    of = "the wire"

    def __init__(self, ranks: Ranks) -> None:
        """Collective."""
        self._size, self._nodes = ranks.size, ranks.nodes()
        leads = ranks.comm.local_rank == 0
        listener = socket.create_server(("", 0)) if leads else None
        here = (own_address(), listener.getsockname()[1]) if listener else None
        places = ranks.gather(here)
        self._ends: tuple[socket.socket, socket.socket] | None = None  # to the next node, from the last
        if listener:
            leaders = [place for place in places if place]
            next_node = leaders[(leaders.index(here) + 1) % len(leaders)]
            to = socket.create_connection(next_node, PATIENCE_S)
            listener.settimeout(PATIENCE_S)
            self._ends = (to, listener.accept()[0])
            listener.close()
            to.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def contender(self, operation: Operation, size_bytes: int) -> Contender:
        ends, count = self._ends, self._crossing(operation, size_bytes)
        return Contender(NAME, partial(stream, *ends, count) if ends else lambda: None)

    def row(self, operation: Operation, size_bytes: int, times: Times) -> dict[str, Any]:
        return _row(self.of, operation, size_bytes, self._crossing(operation, size_bytes), times, 1.0)

    def close(self) -> None:
        for end in self._ends or ():
            end.close()

    def _crossing(self, operation: Operation, size_bytes: int) -> int:
        return max(1, int(operation.crossing(self._nodes, self._size) * size_bytes))


def stream(to: socket.socket, source: socket.socket, count: int) -> None:
    """Sends and receives so many bytes at once. Blocks; raises TimeoutError when nothing moves for long."""
    buffer = memoryview(bytearray(STREAM_BUFFER))
    room = memoryview(bytearray(STREAM_BUFFER))
    to.setblocking(False)
    out = due = count
    while out or due:
        readable, writable, _ = select.select([source] * (due > 0), [to] * (out > 0), [], PATIENCE_S)
        if not readable and not writable:
            raise TimeoutError(f"nothing moved between the nodes for {PATIENCE_S:g} s")
        if writable:
            out -= to.send(buffer[:out])
        if readable:
            due -= received(source.recv_into(room, min(due, STREAM_BUFFER)))


def received(count: int) -> int:
    """The count, if it is not that of a connection that has ended."""
    if count == 0:
        raise ConnectionError("the neighbouring node closed the connection")
    return count


def _row(
    of: str, operation: Operation, size_bytes: int, moved: int, times: Times, share: float
) -> dict[str, Any]:
    taken = percentiles(times, 1e-6)
    return {
        "op": operation.name,
        "of": of,
        "bytes": size_bytes,
        "bandwidth_gbps": moved / taken["p50"] / 1e3,
        "time_us": {name: share * value for name, value in taken.items()},
    }
