"""The collectives, blocking and not, as methods.

Every collective takes C-contiguous arrays of float64, float32, float16, bfloat16, int64, int32, uint8 or
int8: torch tensors, NumPy arrays, anything with the buffer protocol or DLPack. They lie in host memory or,
where `pycomm.info()["cuda"]` says usable, are CUDA tensors on all ranks. Calls on those wait for what the
current stream had been given before, and their results may be used on any stream once the call has returned
or been waited for. (Buckets and mailboxes take host arrays only.) All ranks of a communicator
call the same collectives in the same order with the same arguments but the data. Common arguments:

op          "sum", "prod", "min", "max" or "avg" (a sum divided by the number of ranks; integers truncate)
codec       "none", "fp16" or "bf16": how values travel; the lossy ones serve sums and averages of float32 and
            float64
algorithm   the name of one of `pycomm.info()["algorithms"]`; None chooses
timeout     seconds until the operation fails with `Timeout`; None: `PYCOMM_TIMEOUT_S`, 300
order       in which the ranks' contributions are added: "rank", ((x0 + x1) + x2) + ..., or "tree",
            ((x0 + x1) + (x2 + x3)) + ... on a power of two of ranks; "any" leaves it to the algorithm. In a
            given order results depend on the contributions alone: not on sizes, on how arrays are cut into
            calls or buckets, on transport or algorithm, and all_reduce, reduce_scatter and reduce agree. Sums
            are accumulated in float32 (float64 for float64), scaled, and rounded once; with a lossy codec
            contributions and results pass it once each, whether they travel or not. An algorithm asked for by
            name that does not add so raises InvalidArgument, with those that do
scale       multiplies the result of a sum or average of floating dtypes; equal on all ranks
counts      sizes of the ranks' parts, in elements of the flattened array, 0 allowed: one number per rank, the
            same on all ranks; None: equal parts, those of `numpy.array_split(x.ravel(), size)` (sizes differ
            by at most one). Where each rank knows only its own, `comm.all_gather(np.array([n]))` tells all.
root        the rank that alone gives (broadcast, scatter) or alone gets (reduce, gather)

All ranks end with the same bits, whatever the algorithm and codec. Errors of every call: `InvalidArgument`
before anything moves; `MismatchError` when ranks made different calls, `Timeout`, `TransportError` and
`Aborted`, after any of which the communicator is broken and later calls raise that first cause.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeVar

import numpy as np

from pycomm.errors import InvalidArgument
from pycomm.request import Counts, Request, part_sizes, request
from pycomm.tensors import as_memory, count_of, new_like, part_count, shape_of
from pycomm.work import Work

T = TypeVar("T")


class Collectives(ABC):
    """What a communicator and a group of calls have in common. Subclasses say how a request is run."""

    rank: int
    size: int

    @abstractmethod
    def _run(self, call: Request) -> None: ...

    @abstractmethod
    def _start(self, call: Request, result: T) -> Work[T]: ...

    # ---- everyone gets

    def all_reduce(
        self,
        x: T,
        op: str = "sum",
        out: T | None = None,
        codec: str | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        scale: float = 1.0,
        order: str = "any",
    ) -> T:
        """Reduce `x` over all ranks; every rank gets the whole result. Blocks.

        x: any shape; overwritten with the result unless `out` (same dtype and element count) is given.
        Returns the array that holds the result. `explain()` says by which algorithm; among them
        are ring (Patarasuk and Yuan 2009) and recursive doubling (Thakur, Rabenseifner, Gropp 2005).

        >>> comm.all_reduce(np.ones(3, np.float32))   # on 2 ranks
        array([2., 2., 2.], dtype=float32)
        """
        self._run(request("all_reduce", x, out, op, 0, scale, codec, algorithm, timeout, order=order))
        return x if out is None else out

    def all_reduce_async(
        self,
        x: T,
        op: str = "sum",
        out: T | None = None,
        codec: str | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        scale: float = 1.0,
        order: str = "any",
    ) -> Work[T]:
        """Start `all_reduce`; does not block."""
        call = request("all_reduce", x, out, op, 0, scale, codec, algorithm, timeout, order=order)
        return self._start(call, x if out is None else out)

    def all_gather(
        self,
        x: T,
        out: T | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        counts: Counts | None = None,
    ) -> T:
        """Gather every rank's `x`, on every rank. Blocks.

        Without `out`, x has the same shape (d0, ...) on all ranks and the result is (size * d0, ...), in
        order of rank; 0-d arrays are stacked; with `counts` it is one-dimensional. With `out`, x is part
        `rank` of `out.ravel()` (and may be that very memory). Returns the result.
        """
        call = self._all_gather(x, out, algorithm, timeout, counts)
        self._run(call)
        return call.out  # type: ignore[no-any-return]

    def all_gather_async(
        self,
        x: T,
        out: T | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        counts: Counts | None = None,
    ) -> Work[T]:
        """Start `all_gather`; does not block."""
        call = self._all_gather(x, out, algorithm, timeout, counts)
        return self._start(call, call.out)

    def broadcast(self, x: T, root: int = 0, algorithm: str | None = None, timeout: float | None = None) -> T:
        """Overwrite `x` on every rank with rank `root`'s. Blocks. Returns x."""
        self._run(request("broadcast", x, root=root, algorithm=algorithm, timeout=timeout))
        return x

    def broadcast_async(
        self, x: T, root: int = 0, algorithm: str | None = None, timeout: float | None = None
    ) -> Work[T]:
        """Start `broadcast`; does not block."""
        return self._start(request("broadcast", x, root=root, algorithm=algorithm, timeout=timeout), x)

    # ---- each rank gets its part

    def reduce_scatter(
        self,
        x: T,
        op: str = "sum",
        out: T | None = None,
        codec: str | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        scale: float = 1.0,
        counts: Counts | None = None,
        order: str = "any",
    ) -> T:
        """Reduce `x` over all ranks; each rank gets its part of the result. Blocks.

        x: any shape, left as it is. `out`: an array of as many elements as the part (it may be that very part
        of x); None makes a one-dimensional one. Returns it.
        """
        call = self._reduce_scatter(x, op, out, codec, algorithm, timeout, scale, counts, order)
        self._run(call)
        return call.out  # type: ignore[no-any-return]

    def reduce_scatter_async(
        self,
        x: T,
        op: str = "sum",
        out: T | None = None,
        codec: str | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        scale: float = 1.0,
        counts: Counts | None = None,
        order: str = "any",
    ) -> Work[T]:
        """Start `reduce_scatter`; does not block."""
        call = self._reduce_scatter(x, op, out, codec, algorithm, timeout, scale, counts, order)
        return self._start(call, call.out)

    def scatter(
        self,
        x: T | None,
        root: int = 0,
        out: T | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        counts: Counts | None = None,
    ) -> T:
        """Give each rank its part of rank `root`'s `x`. Blocks.

        x: read on the root only; elsewhere it may be None. `out` receives the part; the root may leave it out
        and gets a new one-dimensional array (or may pass that very part of x). Without `counts` the parts are
        equal, and x has a multiple of `size` elements. Returns out.
        """
        call = self._scatter(x, root, out, algorithm, timeout, counts)
        self._run(call)
        return call.out  # type: ignore[no-any-return]

    def scatter_async(
        self,
        x: T | None,
        root: int = 0,
        out: T | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        counts: Counts | None = None,
    ) -> Work[T]:
        """Start `scatter`; does not block."""
        call = self._scatter(x, root, out, algorithm, timeout, counts)
        return self._start(call, call.out)

    def all_to_all(
        self,
        x: T,
        out: T | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        counts: Counts | None = None,
        received: Counts | None = None,
    ) -> T:
        """Give part r of `x` to rank r, and get part `rank` of every rank's, in order of rank. Blocks.

        counts: here, the elements that this rank gives to each rank, and `received` those that it gets from
        each; without `received` the ranks tell each other first. `out` must not overlap x; None makes an
        array, of x's shape where its first dimension is a multiple of `size`, else one-dimensional. Returns
        out. (Short blocks by Bruck et al. 1997.)
        """
        sizes = part_sizes(counts, "counts", self.size)
        if sizes is not None and received is None:
            received = self._told(sizes, timeout)
        call = self._all_to_all(x, out, algorithm, timeout, sizes, received)
        self._run(call)
        return call.out  # type: ignore[no-any-return]

    def all_to_all_async(
        self,
        x: T,
        out: T | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        counts: Counts | None = None,
        received: Counts | None = None,
    ) -> Work[T]:
        """Start `all_to_all`; does not block, so `counts` needs `received` (an all_to_all of the counts)."""
        if counts is not None and received is None:
            raise InvalidArgument("all_to_all_async: counts is given without received, which others know")
        call = self._all_to_all(x, out, algorithm, timeout, part_sizes(counts, "counts", self.size), received)
        return self._start(call, call.out)

    # ---- the root gets

    def reduce(
        self,
        x: T,
        root: int = 0,
        op: str = "sum",
        out: T | None = None,
        codec: str | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        scale: float = 1.0,
        order: str = "any",
    ) -> T | None:
        """Reduce `x` over all ranks; rank `root` gets the result. Blocks.

        x: any shape; overwritten on the root unless `out` is given, left as it is elsewhere, where `out` is
        not looked at. Returns the array that holds the result on the root, None elsewhere.
        """
        call = self._reduce(x, root, op, out, codec, algorithm, timeout, scale, order)
        self._run(call)
        return self._at_root(root, x if out is None else out)

    def reduce_async(
        self,
        x: T,
        root: int = 0,
        op: str = "sum",
        out: T | None = None,
        codec: str | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        scale: float = 1.0,
        order: str = "any",
    ) -> Work[T | None]:
        """Start `reduce`; does not block."""
        call = self._reduce(x, root, op, out, codec, algorithm, timeout, scale, order)
        return self._start(call, self._at_root(root, x if out is None else out))

    def gather(
        self,
        x: T,
        root: int = 0,
        out: T | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        counts: Counts | None = None,
    ) -> T | None:
        """Gather every rank's `x` on rank `root`. Blocks.

        Without `counts` x has as many elements on every rank. `out` is looked at on the root only (x may be
        its part there); None makes one as `all_gather` does. Returns it on the root, None elsewhere.
        """
        call = self._gather(x, root, out, algorithm, timeout, counts)
        self._run(call)
        return call.out  # type: ignore[no-any-return]

    def gather_async(
        self,
        x: T,
        root: int = 0,
        out: T | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        counts: Counts | None = None,
    ) -> Work[T | None]:
        """Start `gather`; does not block."""
        call = self._gather(x, root, out, algorithm, timeout, counts)
        return self._start(call, call.out)

    # ---- two ranks, and none

    def send(self, x: Any, peer: int, timeout: float | None = None) -> None:
        """Send `x` to rank `peer`, which must receive it. Blocks until x may be rewritten. Messages of a pair
        keep their order."""
        self._run(request("send", x, root=peer, timeout=timeout))

    def send_async(self, x: Any, peer: int, timeout: float | None = None) -> Work[None]:
        """Start `send`; does not block."""
        return self._start(request("send", x, root=peer, timeout=timeout), None)

    def recv(self, x: T, peer: int, timeout: float | None = None) -> T:
        """Overwrite `x` with what rank `peer` sends: the same dtype and element count, else `MismatchError`.
        Blocks. Returns x."""
        self._run(request("recv", x, root=peer, timeout=timeout))
        return x

    def recv_async(self, x: T, peer: int, timeout: float | None = None) -> Work[T]:
        """Start `recv`; does not block."""
        return self._start(request("recv", x, root=peer, timeout=timeout), x)

    def barrier(self, timeout: float | None = None) -> None:
        """Wait until every rank has come here. Blocks. (Dissemination: Hensgen, Finkel, Manber 1988.)"""
        self._run(request("barrier", None, timeout=timeout))

    def barrier_async(self, timeout: float | None = None) -> Work[None]:
        """Start `barrier`; does not block."""
        return self._start(request("barrier", None, timeout=timeout), None)

    def _told(self, counts: list[int], timeout: float | None) -> list[int]:
        """What each rank gives to this one, when each knows what it gives."""
        received: list[int] = self.all_to_all(np.array(counts, np.int64), timeout=timeout).tolist()
        return received

    # ---- requests, with the arrays that results go to

    def _all_gather(
        self, x: Any, out: Any, algorithm: str | None, timeout: float | None, counts: Counts | None
    ) -> Request:
        x, sizes = as_memory(x), part_sizes(counts, "counts", self.size)
        out = self._gathered(x, sizes) if out is None else out
        return request("all_gather", x, out, algorithm=algorithm, timeout=timeout, counts=sizes)

    def _reduce_scatter(
        self,
        x: Any,
        op: str,
        out: Any,
        codec: str | None,
        algorithm: str | None,
        timeout: float | None,
        scale: float,
        counts: Counts | None,
        order: str,
    ) -> Request:
        x, sizes = as_memory(x), part_sizes(counts, "counts", self.size)
        if out is None:
            part = part_count(count_of(x), self.size, self.rank) if sizes is None else sizes[self.rank]
            out = new_like(x, (part,))
        return request("reduce_scatter", x, out, op, 0, scale, codec, algorithm, timeout, sizes, order=order)

    def _scatter(
        self,
        x: Any,
        root: int,
        out: Any,
        algorithm: str | None,
        timeout: float | None,
        counts: Counts | None,
    ) -> Request:
        if not 0 <= root < self.size:
            raise InvalidArgument(f"root is {root}; expected a rank from 0 to {self.size - 1}")
        x, sizes = as_memory(x) if self.rank == root else None, part_sizes(counts, "counts", self.size)
        if out is None and x is not None:
            if sizes is None and count_of(x) % self.size:
                raise InvalidArgument(
                    f"scatter: x has {count_of(x)} elements, not a multiple of {self.size} ranks: pass counts"
                )
            out = new_like(x, (count_of(x) // self.size if sizes is None else sizes[self.rank],))
        return request("scatter", x, out, root=root, algorithm=algorithm, timeout=timeout, counts=sizes)

    def _all_to_all(
        self,
        x: Any,
        out: Any,
        algorithm: str | None,
        timeout: float | None,
        counts: list[int] | None,
        received: Counts | None,
    ) -> Request:
        x, incoming = as_memory(x), part_sizes(received, "received", self.size)
        if out is None:
            out = self._exchanged(x, incoming)
        return request(
            "all_to_all",
            x,
            out,
            algorithm=algorithm,
            timeout=timeout,
            counts=counts,
            received=incoming,
        )

    def _reduce(
        self,
        x: Any,
        root: int,
        op: str,
        out: Any,
        codec: str | None,
        algorithm: str | None,
        timeout: float | None,
        scale: float,
        order: str,
    ) -> Request:
        out = self._at_root(root, out)
        return request("reduce", x, out, op, root, scale, codec, algorithm, timeout, order=order)

    def _gather(
        self,
        x: Any,
        root: int,
        out: Any,
        algorithm: str | None,
        timeout: float | None,
        counts: Counts | None,
    ) -> Request:
        x, sizes = as_memory(x), part_sizes(counts, "counts", self.size)
        if self.rank == root and out is None:
            out = self._gathered(x, sizes)
        out = self._at_root(root, out)
        return request("gather", x, out, root=root, algorithm=algorithm, timeout=timeout, counts=sizes)

    def _at_root(self, root: int, value: T) -> T | None:
        return value if self.rank == root else None

    def _gathered(self, x: Any, counts: list[int] | None) -> Any:
        if counts is not None:
            return new_like(x, (sum(counts),))
        shape = shape_of(x)
        return new_like(x, (self.size * shape[0], *shape[1:]) if shape else (self.size,))

    def _exchanged(self, x: Any, received: list[int] | None) -> Any:
        shape = shape_of(x)
        if received is not None:
            return new_like(x, (sum(received),))
        if shape and shape[0] % self.size == 0:
            return new_like(x, shape)
        return new_like(x, (self.size * part_count(count_of(x), self.size, self.rank),))
