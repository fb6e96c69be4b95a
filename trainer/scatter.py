"""Buckets of which each rank gets its own part alone, reduced: half of what an all-reduce moves.

What DataParallel does with pycomm.Buckets, Zero does with these; a round is the same. With a `pool` only so
many buckets have memory at a time: bucket k lies where bucket k - pool lay, once that one is reduced. A
gradient that comes too early for that waits in memory of its own.

Who waits for such memory waits for all ranks to launch the reduction. Where backward itself waits for others
(ZeRO-3 gathers parameters in it), ranks that take different branches would wait for one another; `patience_s`
is how long `put` waits before it lets the gradient, and flush() the bucket, have memory of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import pycomm
from pycomm import Communicator
from pycomm.buckets import LastRound
from trainer.layout import ShardLayout
from trainer.pages import Pages


class ScatterBuckets(LastRound):
    """The gradients' flat buffers, as GradientBuckets fills them, and `parts`: this rank's part of each.

    launch_when_full: reduce each bucket as soon as it and those before it are full, from within `put`; else
    flush() starts all. pool: how many buckets have memory at a time, if there are more. Full buckets have to
    be launched then, `put` waits where it needs the memory of one in flight, for `patience_s` if that is
    given, and reductions go to memory apart; else they end in place. order: that of the sums, as all_reduce
    has it. nbytes: what all of this takes. before_wait is called in wait() when this rank has launched
    everything. Not thread-safe. Launches are collective: every rank makes them in the same order.
    """

    def __init__(
        self,
        comm: Communicator,
        layout: ShardLayout,
        *,
        codec: str | None,
        order: str = "any",
        launch_when_full: bool,
        pool: int | None = None,
        patience_s: float | None = None,
        before_wait: Callable[[], None] = lambda: None,
    ) -> None:
        self.scale = 1.0
        self._comm = comm
        self._layout = layout
        self._codec = codec
        self._order = order
        self._patience_s = patience_s
        self._before_wait = before_wait
        self._launch_when_full = launch_when_full or pool is not None
        self._count = len(layout.sizes)
        in_place = pool is None or pool >= self._count
        self._lanes = self._count if in_place or pool is None else pool
        memory, self._flat = self._allocate(layout)
        self.parts = [flat[layout.part(k, comm.rank)] for k, flat in enumerate(self._flat)]
        self.nbytes = sum(lane.nbytes for lane in memory)
        if not in_place:
            self.parts = [torch.zeros_like(part) for part in self.parts]
            self.nbytes += sum(part.nbytes for part in self.parts)
        self._slots = [0] * self._count  # how many, by bucket
        for bucket, _, _ in layout.places:
            self._slots[bucket] += 1
        self._zeros: Pages | None = None
        self._begin()

    def put(self, slot: int, gradient: Tensor) -> int:
        """Copies a contiguous gradient into its slot, or keeps it until the slot has memory. Returns how many
        buckets are full in order. Blocks only with a pool, while a bucket that lay there before is reduced.
        """
        self._filled[slot] = 1
        bucket = self._layout.places[slot][0]
        self._early[bucket].append((slot, gradient))
        self._bring_in(bucket)
        self._advance()
        return self._full

    def mark(self, slot: int) -> int:
        """Slots are never filled in place: GradientBuckets has no views of them."""
        raise AssertionError(f"slot {slot} has no view")

    def launch(self, bucket: int) -> None:
        """Starts the reduction of a bucket, the next in order, which is full. Does not block."""
        self._launch(bucket, self._flat[bucket])

    def flush(self) -> None:
        """Zeroes the slots that nobody filled, launches what is not launched, and starts to reduce which
        slots were filled. With a pool, blocks for memory."""
        empty: list[list[int]] = [[] for _ in range(self._count)]
        for slot, (bucket, _, _) in enumerate(self._layout.places):
            if not self._filled[slot]:
                empty[bucket].append(slot)
        for bucket in range(self._launched, self._count):
            flat = self._flat[bucket]
            if self._patience_s is not None and len(empty[bucket]) == self._slots[bucket]:
                self._launch(bucket, self._nothing(flat))  # at once: others may wait for it
                continue
            if not self._bring_in(bucket):
                flat = torch.zeros_like(flat)
                self._copy_early(bucket, flat)
            for slot in empty[bucket]:
                self._view(slot, flat).fill(0)
            self._launch(bucket, flat)
        self._used = self._comm.all_reduce_async(self._filled, op="max")

    def wait(self) -> None:
        """Blocks until the round is reduced; then the next may begin."""
        self._before_wait()
        for work in self._works:
            work.wait()
        self._bits = [bool(bit) for bit in self._used.wait()]
        self._last_works = self._works
        self._begin()

    def used_bits(self) -> list[bool]:
        """By slot: whether any rank filled it in the last round."""
        return self._bits

    def _allocate(self, layout: ShardLayout) -> tuple[list[Tensor], list[Tensor]]:
        """The memory of the lanes, in bytes, and each bucket in its lane: bucket k in lane k % lanes."""
        dtypes: list[torch.dtype] = [getattr(torch, name) for name in layout.dtypes]
        nbytes = [size * dtype.itemsize for size, dtype in zip(layout.sizes, dtypes, strict=True)]
        memory = [
            self._comm.empty(max(nbytes[lane :: self._lanes]), torch.uint8).zero_()
            for lane in range(self._lanes)
        ]
        flat = [
            memory[bucket % self._lanes][:count].view(dtype)
            for bucket, (count, dtype) in enumerate(zip(nbytes, dtypes, strict=True))
        ]
        return memory, flat

    def _begin(self) -> None:
        self._filled = np.zeros(len(self._layout.places), np.uint8)
        self._missing = list(self._slots)  # slots to come, by bucket
        self._early: list[list[tuple[int, Tensor]]] = [[] for _ in range(self._count)]
        self._late: set[int] = set()  # buckets that were waited for once
        self._full = 0  # buckets 0 … full-1 are full
        self._launched = 0
        self._works: list[pycomm.Work[Tensor]] = []

    def _advance(self) -> None:
        """Counts the full buckets; launches them, and brings in what waited for their memory, if that is
        to be done."""
        while self._full < self._count and self._missing[self._full] == 0:
            self._full += 1
            if self._launch_when_full:
                self.launch(self._full - 1)
                successor = self._full - 1 + self._lanes
                if successor < self._count and self._early[successor]:
                    self._bring_in(successor)

    def _launch(self, bucket: int, flat: Tensor) -> None:
        part = self.parts[bucket]
        how: dict[str, Any] = {"scale": self.scale, "codec": self._codec, "order": self._order}
        if self._layout.ranks == self._comm.size:
            self._works.append(self._comm.reduce_scatter_async(flat, out=part, **how))
        else:  # everyone owns all of it, in place
            self._works.append(self._comm.all_reduce_async(flat, **how))
        self._launched += 1

    def _nothing(self, like: Tensor) -> Tensor:
        """Zeros that nobody writes, so that they take no memory: the kernel has one page of them."""
        if self._zeros is None:
            self._zeros = Pages(max(flat.nbytes for flat in self._flat), torch.uint8)
        return self._zeros.tensor[: like.nbytes].view(like.dtype)

    def _bring_in(self, bucket: int) -> bool:
        """Copies what waits for the bucket's memory there, if that is the bucket's own; blocks while the one
        that lay there before is reduced. False if it is not launched, or patience has ended."""
        before = bucket - self._lanes
        if before >= self._launched:
            return False
        if before >= 0:
            try:
                self._works[before].wait(0 if bucket in self._late else self._patience_s)
            except pycomm.Timeout:
                if self._works[before].done():  # the reduction's own deadline
                    raise
                self._late.add(bucket)
                return False
        self._copy_early(bucket, self._flat[bucket])
        return True

    def _copy_early(self, bucket: int, flat: Tensor) -> None:
        for slot, gradient in self._early[bucket]:
            # NumPy's copy is memcpy, which for large blocks writes past the cache.
            np.copyto(self._view(slot, flat), gradient.reshape(-1).view(torch.uint8).numpy())
            self._missing[bucket] -= 1
        self._early[bucket] = []

    def _view(self, slot: int, flat: Tensor) -> npt.NDArray[np.uint8]:
        _, offset, count = self._layout.places[slot]
        view: npt.NDArray[np.uint8] = flat[offset : offset + count].view(torch.uint8).numpy()
        return view
