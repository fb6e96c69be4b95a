"""Scattered buckets: every rank gets its part of the sums, in whatever order gradients come."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

import pycomm
from pycomm import Communicator
from pycomm.testing import run_threads
from trainer.layout import shard_layout
from trainer.scatter import ScatterBuckets

COUNTS = [3, 130, 0, 64, 1, 500, 65, 7, 200]
ROUNDS = 3


def gradient(slot: int, rank: int, turn: int) -> Tensor:
    """Small whole numbers: sums are exact in any order."""
    return (torch.arange(COUNTS[slot]) % 7 + rank + turn + slot).float()


def missing(slot: int, rank: int, turn: int) -> bool:
    return slot == 4 or (slot + rank + turn) % 5 == 0  # slot 4 on all ranks


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("pool", [None, 1, 2, 3, 100])
@pytest.mark.parametrize("when_full", [True, False])
def test_parts_are_those_of_the_scaled_sum(size: int, pool: int | None, when_full: bool) -> None:
    layout = shard_layout([pycomm.Slot(count) for count in COUNTS], size, 600)
    assert len(layout.sizes) >= 3

    def rank(comm: Communicator) -> list:
        buckets = ScatterBuckets(comm, layout, codec=None, launch_when_full=when_full, pool=pool)
        results = []
        for turn in range(ROUNDS):
            buckets.scale = 0.5
            order = list(range(len(COUNTS)))
            random.Random(100 * turn + comm.rank).shuffle(order)
            for slot in order:
                if not missing(slot, comm.rank, turn):
                    buckets.put(slot, gradient(slot, comm.rank, turn))
            buckets.flush()
            buckets.wait()
            mine = {}
            for piece in layout.pieces(comm.rank):
                start = piece.offset - layout.part(piece.bucket, comm.rank).start
                mine[piece.slot, piece.start] = buckets.parts[piece.bucket][
                    start : start + piece.count
                ].clone()
            results.append((mine, buckets.used_bits()))
        return results

    for results in run_threads(size, rank):
        for turn, (mine, used) in enumerate(results):
            for (slot, start), got in mine.items():
                there = [r for r in range(size) if not missing(slot, r, turn)]
                total = sum((gradient(slot, r, turn) for r in there), torch.zeros(COUNTS[slot])) / 2
                assert torch.equal(got, total[start : start + len(got)])
                assert used[slot] == bool(there)
            assert not used[4]


def test_a_pool_takes_less_memory_where_there_are_more_buckets() -> None:
    def held(pool: int | None) -> int:
        layout = shard_layout([pycomm.Slot(1024)] * 6, 2, 1)
        make = lambda comm: ScatterBuckets(comm, layout, codec=None, launch_when_full=True, pool=pool)  # noqa: E731
        return run_threads(2, lambda comm: make(comm).nbytes)[0]

    assert held(None) == held(6) == 6 * 4096
    assert held(2) == 2 * 4096 + 6 * 2048
