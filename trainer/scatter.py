"""Buckets of which each rank gets its own part alone, reduced: half of what an all-reduce moves.

What DataParallel does with pycomm.Buckets, Zero does with these; a round is the same. With a `pool` only so
many buckets have memory at a time: bucket k lies where bucket k - pool lay, once that one is reduced. A
gradient that comes too early for that waits in memory of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import pycomm
from pycomm import Communicator
from trainer.layout import ShardLayout


class ScatterBuckets:
    """The gradients' flat buffers, as GradientBuckets fills them, and `parts`: this rank's part of each.

    launch_when_full: reduce each bucket as soon as it and those before it are full, from within `put`; else
    flush() starts all. pool: how many buckets have memory at a time, if there are more. Full buckets have to
    be launched then, `put` waits where it needs the memory of one in flight, and reductions go to memory
    apart; else they end in place. order: that of the sums, as all_reduce has it. nbytes: what all of this
    takes. Not thread-safe. Launches are collective: every rank makes them in the same order.
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
    ) -> None:
        self.scale = 1.0
        self._comm = comm
        self._layout = layout
        self._codec = codec
        self._order = order
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
        self._last_works: list[pycomm.Work[Tensor]] = []
        self._begin()

    def put(self, slot: int, gradient: Tensor) -> int:
        """Copies a contiguous gradient into its slot, or keeps it until the slot has memory. Returns how many
        buckets are full in order. Blocks only with a pool, while a bucket that lay there before is reduced.
        """
        self._filled[slot] = 1
        bucket = self._layout.places[slot][0]
        before = bucket - self._lanes
        if before >= self._launched:
            self._early[bucket].append((slot, gradient))
        else:
            if before >= 0:
                self._works[before].wait()
            self._copy(slot, gradient)
        self._advance()
        return self._full

    def mark(self, slot: int) -> int:
        """Slots are never filled in place: GradientBuckets has no views of them."""
        raise AssertionError(f"slot {slot} has no view")

    def launch(self, bucket: int) -> None:
        """Starts the reduction of a bucket, the next in order, which is full. Does not block."""
        flat, part = self._flat[bucket], self.parts[bucket]
        how: dict[str, Any] = {"scale": self.scale, "codec": self._codec, "order": self._order}
        if self._layout.ranks == self._comm.size:
            self._works.append(self._comm.reduce_scatter_async(flat, out=part, **how))
        else:  # everyone owns all of it, in place
            self._works.append(self._comm.all_reduce_async(flat, **how))
        self._launched += 1

    def flush(self) -> None:
        """Zeroes the slots that nobody filled, launches what is not launched, and starts to reduce which
        slots were filled. With a pool, blocks for memory."""
        empty: list[list[int]] = [[] for _ in range(self._count)]
        for slot, (bucket, _, _) in enumerate(self._layout.places):
            if not self._filled[slot]:
                empty[bucket].append(slot)
        for bucket in range(self._launched, self._count):
            self._make_room(bucket)
            for slot in empty[bucket]:
                self._view(slot).fill(0)
            self.launch(bucket)
        self._used = self._comm.all_reduce_async(self._filled, op="max")

    def wait(self) -> None:
        """Blocks until the round is reduced; then the next may begin."""
        for work in self._works:
            work.wait()
        self._bits = [bool(bit) for bit in self._used.wait()]
        self._last_works = self._works
        self._begin()

    def used_bits(self) -> list[bool]:
        """By slot: whether any rank filled it in the last round."""
        return self._bits

    @property
    def submitted_s(self) -> list[float]:
        """When each bucket of the last round was launched, on the clock of time.monotonic()."""
        return [work.submitted_s for work in self._last_works]

    @property
    def finished_s(self) -> list[float]:
        """When each bucket of the last round was reduced, on the same clock."""
        return [work.finished_s for work in self._last_works]

    @property
    def bytes_sent(self) -> int:
        """Payload bytes that this rank sent in the last round."""
        return sum(work.bytes_sent for work in self._last_works)

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
        self._missing = [0] * self._count  # slots to come, by bucket
        for bucket, _, _ in self._layout.places:
            self._missing[bucket] += 1
        self._early: list[list[tuple[int, Tensor]]] = [[] for _ in range(self._count)]
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
                    self._make_room(successor)

    def _make_room(self, bucket: int) -> None:
        """Blocks until the bucket's memory is its own, and copies what waited for that. The bucket that lay
        there before is launched."""
        if bucket >= self._lanes:
            self._works[bucket - self._lanes].wait()
        for slot, gradient in self._early[bucket]:
            self._copy(slot, gradient)
        self._early[bucket] = []

    def _copy(self, slot: int, gradient: Tensor) -> None:
        # NumPy's copy is memcpy, which for large blocks writes past the cache.
        np.copyto(self._view(slot), gradient.reshape(-1).view(torch.uint8).numpy())
        self._missing[self._layout.places[slot][0]] -= 1

    def _view(self, slot: int) -> npt.NDArray[np.uint8]:
        bucket, offset, count = self._layout.places[slot]
        view: npt.NDArray[np.uint8] = self._flat[bucket][offset : offset + count].view(torch.uint8).numpy()
        return view
