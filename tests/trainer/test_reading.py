"""What every kind of source promises to the training loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from own_data import Chosen, Endless, Listed, Points, Shards, tensors

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer.data import CLASSIFICATION
from trainer.reading import Readable, Share
from trainer.reading.local import Own
from trainer.reading.mapped import Mapped
from trainer.reading.memory import Memory
from trainer.reading.stream import Stream
from trainer.reading.workers import Workers

PLACE = "train", 0, Workers()
COUNT = 41


KINDS: dict[str, Any] = {
    "memory": lambda rank, size: Memory(tensors(range(COUNT))),
    "mapped": lambda rank, size: Mapped(Points(COUNT), *PLACE),
    "stream": lambda rank, size: Stream(Endless(COUNT), *PLACE),
    "shards": lambda rank, size: Stream(Shards(COUNT), *PLACE),
    "own memory": lambda rank, size: Own(Memory(tensors(own(rank, size)))),
    "own mapped": lambda rank, size: Own(Mapped(Chosen(own(rank, size)), *PLACE)),
    "own stream": lambda rank, size: Own(Stream(Listed(own(rank, size)), *PLACE)),
}


def own(rank: int, size: int) -> list[int]:
    """Samples that lie on this rank, more on later ones."""
    cuts = [COUNT * r * (r + 1) // (size * (size + 1)) for r in (rank, rank + 1)]
    return list(range(*cuts))


def sorted_rows(pairs: list[Any]) -> list[list[float]]:
    return sorted([*x.tolist(), float(y)] for pair in pairs for x, y in zip(*pair, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 3])
def test_an_epoch_of_any_kind_has_every_sample_once_and_equal_counts(kind: str, size: int) -> None:
    def rank(comm: Communicator) -> list[Any]:
        readable: Readable = KINDS[kind](comm.rank, comm.size)
        source = readable.source(Share(comm, comm.rank, comm.size, 8, 0, CLASSIFICATION))
        source.steps = 30
        taken = []
        for step in range(30):
            batch = source.batch(step)
            if batch.epoch:
                return taken
            pair = source.take(batch.indices)
            assert source.trouble is None
            assert len(pair[0]) == len(pair[1]) == len(batch.indices) == batch.local_count
            assert comm.all_reduce(torch.tensor([batch.local_count])).item() == batch.global_count
            assert batch.global_samples == batch.global_count <= 8
            # Of any part of the batch, and of none, as micro-batches take them.
            for part in (*batch.indices.tensor_split(3), batch.indices.flip(0), batch.indices[:0]):
                rows = [batch.indices.tolist().index(index) for index in part.tolist()]
                got = source.take(part)
                assert all(torch.equal(one, whole[rows]) for one, whole in zip(got, pair, strict=True))
            taken.append(pair)
        raise AssertionError("the epoch has no end")

    by_rank = run_threads(size, rank)
    assert sorted_rows([pair for pairs in by_rank for pair in pairs]) == sorted_rows([tensors(range(COUNT))])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("most", [1, 4, 1000])
def test_an_evaluation_of_any_kind_has_every_sample_once(kind: str, size: int, most: int) -> None:
    chunks = []
    for rank in range(size):
        readable = KINDS[kind](rank, size)
        mine = list(readable.chunks(CLASSIFICATION, rank, size, most))
        assert all(1 <= len(inputs) <= most for inputs, _ in mine)
        chunks += mine
    assert sorted_rows(chunks) == sorted_rows([tensors(range(COUNT))])
