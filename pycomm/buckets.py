"""Fusing many gradients into a few flat buffers that are reduced as one (as DDP does: Li et al., VLDB
2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pycomm import _core
from pycomm.communicator import Communicator
from pycomm.errors import InvalidArgument
from pycomm.tensors import DTYPES, dtype_name
from pycomm.work import wait_for

ALIGNMENT = 64  # elements: where slots start

# NumPy has no bfloat16: its bits are shown as uint16.
_NUMPY = {name: np.dtype("uint16" if name == "bfloat16" else name) for name in DTYPES}


@dataclass(frozen=True)
class Slot:
    """One gradient: how many elements, of which dtype ("float32", torch.float32, numpy.float32, ...), in
    which optimizer group."""

    count: int
    dtype: Any = "float32"
    group: int = 0


class LastRound:
    """What the last round of buckets that are reduced in rounds took; they set `_last_works`."""

    _last_works: Sequence[Any] = ()

    @property
    def submitted_s(self) -> list[float]:
        """When each bucket of the last round was launched, on the clock of `time.monotonic()`."""
        return [work.submitted_s for work in self._last_works]

    @property
    def finished_s(self) -> list[float]:
        """When each bucket of the last round was reduced, on the same clock."""
        return [work.finished_s for work in self._last_works]

    @property
    def bytes_sent(self) -> int:
        """Payload bytes that this rank sent in the last round."""
        return sum(work.bytes_sent for work in self._last_works)


class Buckets(LastRound):
    """The flat buffers of one model's gradients, and the rounds in which they are reduced.

    slots are listed in the order in which gradients become ready. Slots of one (group, dtype) share buckets
    of about `bucket_bytes`; buckets are ordered by the slot that fills them last, and that order is fixed for
    good. A round:

        buckets.scale = 1 / global_count            # multiplies the sums of this round
        buckets.put(i, gradient)  or  buckets.mark(i)   # for each gradient; never blocks
        buckets.flush()                             # zeros for the rest; launches what is not launched
        buckets.wait()                              # blocks; then view(i) holds the reduced gradients

    launch: "full" launches each bucket as soon as it and those before it are full; "manual" leaves it to
    `launch()` and `flush()`. op, codec, algorithm, order: those of `all_reduce`; in a given order the reduced
    gradients do not depend on `bucket_bytes` or on how slots are listed. Not thread-safe. The operations are
    collectives on `comm`: all ranks make them in the same order.
    """

    def __init__(
        self,
        comm: Communicator,
        slots: Sequence[Slot],
        bucket_bytes: int = 25 << 20,
        op: str = "sum",
        codec: str | None = None,
        algorithm: str | None = None,
        launch: str = "full",
        order: str = "any",
    ) -> None:
        if launch not in ("full", "manual"):
            raise InvalidArgument(f"launch is '{launch}'; expected full or manual")
        self.slots = list(slots)
        self.scale = 1.0
        self._comm = comm
        self._places, sizes, dtypes = layout(self.slots, bucket_bytes)
        self._dtypes = [dtypes[bucket] for bucket, _, _ in self._places]
        self.dtypes = dtypes  # of each bucket
        # Where the node's ranks address it: reductions read it there.
        self.flat = [comm.empty(size, _NUMPY[name]) for size, name in zip(sizes, dtypes, strict=True)]
        for flat in self.flat:
            flat.fill(0)
        self._core = _core.Bucketer(
            comm._core,
            [flat.view(np.uint8) for flat in self.flat],
            [DTYPES[name] for name in dtypes],
            self._places,
            op,
            codec or "",
            algorithm or "",
            order,
            launch == "full",
            True,
        )

    def __len__(self) -> int:
        """The number of buckets."""
        return len(self.flat)

    def place(self, slot: int) -> tuple[int, int, int]:
        """Where a slot lies: bucket, first element, element count."""
        return self._places[slot]

    def view(self, slot: int) -> Any:
        """The slot's memory as a one-dimensional NumPy array (bfloat16 as its bits, uint16)."""
        bucket, offset, count = self._places[slot]
        return self.flat[bucket][offset : offset + count]

    def torch_view(self, slot: int, shape: Sequence[int]) -> Any:
        """The slot's memory as a torch tensor of that shape; it keeps the memory alive."""
        import torch

        tensor = torch.from_numpy(
            self.view(slot).view(np.uint8 if self.slots[slot].count == 0 else self.view(slot).dtype)
        )
        return tensor.view(getattr(torch, self._dtypes[slot])).view(tuple(shape))

    def put(self, slot: int, gradient: Any) -> int:
        """Copy a gradient (same dtype and count) into its slot. Does not block. Returns how many buckets are
        full in order.

        Raises InvalidArgument when the slot was already filled in this round.
        """
        return self._core.put(slot, gradient, self.scale)

    def mark(self, slot: int) -> int:
        """Say that a gradient lies in its slot already; else as `put`."""
        return self._core.mark(slot, self.scale)

    def filled(self, slot: int) -> bool:
        """Whether the slot was put or marked in this round."""
        return self._core.filled(slot)

    @property
    def launched(self) -> int:
        """How many buckets of this round are launched."""
        return self._core.launched

    def launch(self, bucket: int) -> None:
        """Start reducing a full bucket: the next in order. Does not block."""
        self._core.launch(bucket, self.scale)

    def flush(self) -> None:
        """Zero the slots that nobody filled, launch what is not launched, and reduce which slots were filled.
        Does not block."""
        self._core.flush(self.scale)

    def wait(self, timeout: float | None = None) -> None:
        """Block until the round is reduced; then the next may begin. Raises what made a bucket fail."""
        for work in self._core.works:
            wait_for(self._comm._core, work, timeout)
        self._last_works = self._core.works[:-1]
        self._core.finish_round()

    def reset(self) -> None:
        """Drop a round of which nothing is launched yet."""
        self._core.reset()

    def used_bits(self) -> list[bool]:
        """By slot: whether any rank filled it in the last round that was waited for."""
        return [bool(bit) for bit in self._core.used]


def layout(
    slots: Sequence[Slot], bucket_bytes: int = 25 << 20, alignment: int = ALIGNMENT
) -> tuple[list[tuple[int, int, int]], list[int], list[str]]:
    """How `Buckets` lays these slots out: the place of each slot, as `Buckets.place` gives it, and the
    elements and dtype of each bucket; or as it would if slots started at multiples of `alignment` elements.
    Allocates nothing."""
    if bucket_bytes < 1:
        raise InvalidArgument(f"bucket_bytes is {bucket_bytes}; expected at least 1")
    dtypes = [dtype_name(slot.dtype, "a slot") for slot in slots]
    open_bucket: dict[tuple[int, str], list[int]] = {}
    done: list[list[int]] = []
    for i, slot in enumerate(slots):
        if slot.count < 0:
            raise InvalidArgument(f"slot {i} has {slot.count} elements; expected 0 or more")
        members = open_bucket.setdefault((slot.group, dtypes[i]), [])
        members.append(i)
        if (
            sum(_padded(slots[m].count, alignment) for m in members) * _NUMPY[dtypes[i]].itemsize
            >= bucket_bytes
        ):
            done.append(open_bucket.pop((slot.group, dtypes[i])))
    done += open_bucket.values()
    done.sort(key=lambda members: members[-1])
    places: list[tuple[int, int, int]] = [(0, 0, 0)] * len(slots)
    sizes = []
    for bucket, members in enumerate(done):
        offset = 0
        for i in members:
            places[i] = (bucket, offset, slots[i].count)
            offset += _padded(slots[i].count, alignment)
        sizes.append(offset)
    return places, sizes, [dtypes[members[0]] for members in done]


def _padded(count: int, alignment: int) -> int:
    return -(-count // alignment) * alignment
