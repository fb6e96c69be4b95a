"""The sum of squares is the same number whoever has which part of the parameters."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import pycomm
from pycomm import Communicator
from pycomm.testing import run_threads
from trainer.block_norm import CHUNK, BlockNorm, block_squares
from trainer.exact import BLOCK
from trainer.layout import shard_layout

COUNTS = [1, 3 * BLOCK + 37, 0, 63, BLOCK, 2 * BLOCK + 1, 5000]


def gradients_of() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, generator=generator) * 10.0**index for index, count in enumerate(COUNTS)]


@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, BLOCK + 1, CHUNK * BLOCK + 17])
def test_squares_of_blocks_are_exact_where_they_can_be(count: int) -> None:
    values = torch.randint(-1000, 1000, (count,), generator=torch.Generator().manual_seed(count)).float()
    expected = [int((block.double() ** 2).sum()) for block in values.split(BLOCK)]
    assert block_squares(values).tolist() == expected


@pytest.mark.parametrize("bucket_bytes", [1, 40_000, 1 << 20])
@pytest.mark.parametrize("skipped", [None, 5])
def test_it_does_not_depend_on_ranks_or_buckets(bucket_bytes: int, skipped: int | None) -> None:
    gradients = gradients_of()
    slots = [pycomm.Slot(count) for count in COUNTS]

    def rank(comm: Communicator) -> float:
        layout = shard_layout(slots, comm.size, bucket_bytes, BLOCK, shards=8)
        pieces = layout.pieces(comm.rank)
        norm = BlockNorm(COUNTS, pieces, comm.all_reduce)
        own = [
            None if piece.slot == skipped else gradients[piece.slot][piece.start : piece.start + piece.count]
            for piece in pieces
        ]
        return norm.squares(own)

    got = {value for size in (1, 2, 4, 8) for value in run_threads(size, rank)}
    assert len(got) == 1
    present = [g.double() for slot, g in enumerate(gradients) if slot != skipped]
    assert got.pop() == pytest.approx(sum((g @ g).item() for g in present), rel=1e-14)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_what_is_not_finite_is_found_by_all_ranks(value: float) -> None:
    slots = [pycomm.Slot(3 * BLOCK)]

    def rank(comm: Communicator) -> float:
        pieces = shard_layout(slots, comm.size, 1 << 20, BLOCK, shards=8).pieces(comm.rank)
        own: list[Tensor | None] = [torch.ones(piece.count) for piece in pieces]
        if comm.rank == 0:
            own[0][5] = value
        return BlockNorm([3 * BLOCK], pieces, comm.all_reduce).squares(own)

    for got in run_threads(2, rank):
        assert str(got) == str(value)
