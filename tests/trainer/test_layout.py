"""Shards cover every parameter exactly once, at aligned cuts, for any shapes, groups and number of ranks."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pycomm
from pycomm.buckets import layout
from trainer.layout import Piece, shard_layout

SLOTS = st.lists(
    st.builds(
        pycomm.Slot,
        count=st.one_of(st.integers(0, 70), st.sampled_from([0, 1, 63, 64, 65, 4095, 4096, 10007])),
        dtype=st.sampled_from(["float32", "bfloat16"]),
        group=st.integers(0, 2),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(SLOTS, st.integers(1, 17), st.integers(1, 50_000), st.sampled_from([64, 128, 4096]))
def test_every_element_has_one_owner(
    slots: list[pycomm.Slot], ranks: int, bucket_bytes: int, cut: int
) -> None:
    shards = shard_layout(slots, ranks, bucket_bytes, cut)
    pieces = [(rank, piece) for rank in range(ranks) for piece in shards.pieces(rank)]
    for slot, (bucket, offset, count) in enumerate(shards.places):
        own = sorted((piece.start, piece.count) for _, piece in pieces if piece.slot == slot)
        assert [start for start, _ in own] == [sum(count for _, count in own[:i]) for i in range(len(own))]
        assert sum(length for _, length in own) == count == slots[slot].count
        assert offset % 64 == 0 and offset + count <= shards.sizes[bucket]
    for rank, piece in pieces:
        part = shards.part(piece.bucket, rank)
        assert part.start <= piece.offset and piece.offset + piece.count <= part.stop
        assert shards.places[piece.slot][:2] == (piece.bucket, piece.offset - piece.start)
        assert piece.start % cut == 0 and piece.count > 0


@settings(max_examples=100, deadline=None)
@given(SLOTS, st.integers(1, 17), st.integers(1, 50_000), st.sampled_from([64, 4096]))
def test_parts_are_equal_aligned_and_little_padded(
    slots: list[pycomm.Slot], ranks: int, bucket_bytes: int, cut: int
) -> None:
    shards = shard_layout(slots, ranks, bucket_bytes, cut)
    places, sizes, dtypes = layout(slots, bucket_bytes, cut)
    assert (shards.places, shards.dtypes) == (places, dtypes)
    for bucket, size in enumerate(sizes):
        parts = [shards.part(bucket, rank) for rank in range(ranks)]
        assert len({part.stop - part.start for part in parts}) == 1
        assert all(part.start % cut == 0 for part in parts)
        assert [part.start for part in parts[1:]] + [shards.sizes[bucket]] == [part.stop for part in parts]
        assert 0 <= shards.sizes[bucket] - size < ranks * cut
    kinds = Counter(
        (bucket, slot.group, slot.dtype) for slot, (bucket, _, _) in zip(slots, places, strict=True)
    )
    assert len({bucket for bucket, _, _ in kinds}) == len(kinds)  # one group and dtype to a bucket


@settings(max_examples=100, deadline=None)
@given(SLOTS, st.sampled_from([1, 2, 4, 8]), st.integers(1, 50_000), st.sampled_from([64, 4096]))
def test_with_shards_all_ranks_together_have_the_same_pieces_whatever_their_number(
    slots: list[pycomm.Slot], ranks: int, bucket_bytes: int, cut: int
) -> None:
    expected = shard_layout(slots, 8, bucket_bytes, cut, shards=8)
    shards = shard_layout(slots, ranks, bucket_bytes, cut, shards=8)
    assert (shards.places, shards.sizes, shards.dtypes) == (expected.places, expected.sizes, expected.dtypes)
    in_order = sorted(
        (piece for rank in range(8) for piece in expected.pieces(rank)),
        key=lambda piece: (piece.slot, piece.start),
    )
    for rank in range(ranks):
        owned = [piece for piece in in_order if _within(piece, shards.part(piece.bucket, rank))]
        assert shards.pieces(rank) == owned
        assert shards.pieces(rank + ranks) == owned
    assert sum(len(shards.pieces(rank)) for rank in range(ranks)) == len(in_order)


def _within(piece: Piece, part: slice) -> bool:
    return part.start <= piece.offset and piece.offset + piece.count <= part.stop


@pytest.mark.parametrize("ranks", [2, 3, 100])
def test_some_ranks_may_own_nothing(ranks: int) -> None:
    shards = shard_layout([pycomm.Slot(3), pycomm.Slot(65)], ranks, 1 << 20)
    owners = {rank for rank in range(ranks) if shards.pieces(rank)}
    assert owners == set(range(min(ranks, 3)))
