"""Where each rank's share of a model's parameters lies: a pure function of slots and the number of ranks.

Slots lie in flat buckets as pycomm.Buckets lays them out: one optimizer group and dtype to a bucket, slots
starting at multiples of 64 elements. Here each bucket is padded until its `ranks` equal parts begin at
multiples of `cut` too; rank r owns part r of every bucket. A parameter may lie across several parts, and a
rank whose parts hold nothing but padding owns nothing. (Rajbhandari et al., "ZeRO: Memory Optimizations
Toward Training Trillion Parameter Models", SC 2020, partition the same way, one part per bucket and rank.)

Cuts at multiples of 64 elements leave every element at the place in a vector register that it has in the
whole parameter: a torch kernel that treats the last few elements of a tensor in another way treats the same
ones so, and a shard's update is the whole parameter's to the bit. Exact mode does not rely on that: buckets
are then cut into as many `shards` whatever the number of ranks, which together step the same pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pycomm
from pycomm.buckets import ALIGNMENT, layout


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `start + count` of a flattened parameter, which lie in `bucket` from `offset`."""

    slot: int
    start: int
    count: int
    bucket: int
    offset: int


@dataclass(frozen=True)
class ShardLayout:
    """By slot: bucket, first element and element count. By bucket: padded size in elements, and dtype.

    `ranks`: how many own different parts; of more ranks, rank r owns what rank r % ranks does. `shards`: a
    multiple of `ranks`; pieces end where any of so many equal parts does."""

    places: list[tuple[int, int, int]]
    sizes: list[int]
    dtypes: list[str]
    ranks: int
    shards: int

    def part(self, bucket: int, rank: int) -> slice:
        """The elements of the bucket that the rank owns."""
        count, rank = self.sizes[bucket] // self.ranks, rank % self.ranks
        return slice(rank * count, (rank + 1) * count)

    def pieces(self, rank: int) -> list[Piece]:
        """What the rank owns of each slot, in order of slots; slots of which it owns nothing are left out."""
        pieces = []
        for slot, (bucket, offset, count) in enumerate(self.places):
            part, unit = self.part(bucket, rank), self.sizes[bucket] // self.shards
            first, last = max(offset, part.start), min(offset + count, part.stop)
            while first < last:
                end = min(last, (first // unit + 1) * unit)
                pieces.append(Piece(slot, first - offset, end - first, bucket, first))
                first = end
        return pieces


def shard_layout(
    slots: Sequence[pycomm.Slot],
    ranks: int,
    bucket_bytes: int,
    cut: int = ALIGNMENT,
    shards: int | None = None,
) -> ShardLayout:
    """The same for the same arguments, everywhere. `cut`: a multiple of 64 elements, at which slots and parts
    begin. `shards`: as often as the ranks if not given; but for `ranks` nothing depends on the ranks then."""
    places, sizes, dtypes = layout(slots, bucket_bytes, cut)
    shards = ranks if shards is None else shards
    unit = shards * cut
    return ShardLayout(places, [-(-size // unit) * unit for size in sizes], dtypes, ranks, shards)
