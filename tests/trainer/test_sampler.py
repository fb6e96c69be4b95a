from __future__ import annotations

import pytest
import torch

from trainer.errors import TrainerError
from trainer.sampler import Sampler

SIZES = [1, 2, 3, 4, 5, 8]


def step_of(size: int, step: int, count: int = 103, global_batch: int = 10) -> list[torch.Tensor]:
    return [Sampler(count, global_batch, 7, rank, size).batch(step).indices for rank in range(size)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("global_batch", [1, 3, 10, 103])
def test_the_samples_of_a_step_do_not_depend_on_the_ranks(size: int, global_batch: int) -> None:
    steps = 2 * Sampler(103, global_batch, 7).steps_per_epoch
    for step in range(steps):
        alone = Sampler(103, global_batch, 7).batch(step)
        assert torch.equal(torch.cat(step_of(size, step, global_batch=global_batch)), alone.indices)
        assert alone.global_count == len(alone.indices)


@pytest.mark.parametrize("size", SIZES)
def test_an_epoch_has_every_sample_once(size: int) -> None:
    sampler = Sampler(103, 10, 7)
    for epoch in range(2):
        steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
        seen = torch.cat([part for step in steps for part in step_of(size, step)])
        assert sorted(seen.tolist()) == list(range(103))


def test_the_last_batch_of_an_epoch_is_smaller_and_says_so() -> None:
    sampler = Sampler(103, 10, 7)
    assert sampler.steps_per_epoch == 11
    assert [sampler.batch(step).global_count for step in (0, 9, 10, 11)] == [10, 10, 3, 10]
    assert [sampler.batch(step).epoch for step in (0, 10, 11)] == [0, 0, 1]


def test_any_step_can_be_asked_for_first() -> None:
    walked = Sampler(103, 10, 7)
    for step in range(25):
        expected = walked.batch(step).indices
        assert torch.equal(Sampler(103, 10, 7).batch(step).indices, expected)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first, second = Sampler(103, 103, 7).batch(0).indices, Sampler(103, 103, 7).batch(1).indices
    other = Sampler(103, 103, 8).batch(0).indices
    assert not torch.equal(first, second)
    assert not torch.equal(first, other)


def test_more_ranks_than_samples_leave_some_without() -> None:
    assert [len(part) for part in step_of(5, 0, count=3, global_batch=3)] == [1, 1, 1, 0, 0]


def test_a_batch_of_more_than_there_is_takes_all() -> None:
    sampler = Sampler(103, 128, 7)
    assert (sampler.global_batch, sampler.steps_per_epoch) == (103, 1)
    assert sorted(torch.cat(step_of(2, 0, global_batch=128)).tolist()) == list(range(103))
    assert [len(part) for part in step_of(2, 1, count=100, global_batch=128)] == [50, 50]


@pytest.mark.parametrize(("count", "global_batch"), [(103, 0), (0, 10)])
def test_no_batch_and_no_sample_are_refused(count: int, global_batch: int) -> None:
    with pytest.raises(TrainerError, match=f"1 or more, got {count} and {global_batch}"):
        Sampler(count, global_batch, 7)


@pytest.mark.parametrize("size", SIZES)
def test_counts_are_those_of_the_samples_taken(size: int) -> None:
    counts = torch.arange(103)
    for step in range(11):
        batches = [Sampler(103, 10, 7, rank, size, counts).batch(step) for rank in range(size)]
        assert [batch.local_count for batch in batches] == [int(batch.indices.sum()) for batch in batches]
        total = sum(batch.local_count for batch in batches)
        assert [batch.global_count for batch in batches] == [total] * size
        assert [batch.global_samples for batch in batches] == [sum(len(b.indices) for b in batches)] * size


@pytest.mark.parametrize("size", SIZES)
def test_a_position_says_where_any_number_of_ranks_goes_on(size: int) -> None:
    for step in range(25):
        positions = [Sampler(103, 10, 7, rank, size).position(step) for rank in range(size)]
        assert positions == [Sampler(103, 10, 7).position(step)] * size
        epoch, position = positions[0]["epoch"], positions[0]["position"]
        rest = torch.cat([torch.cat(step_of(size, later)) for later in range(step, 11 * (step // 11 + 1))])
        whole = Sampler(103, 103, 7).batch(step // 11).indices
        assert epoch == step // 11
        assert torch.equal(rest, whole[position:])


def test_another_order_has_another_hash() -> None:
    orders = {
        Sampler(103, 10, seed).position(step)["order_sha256"] for seed in (7, 8) for step in (0, 10, 11)
    }
    assert len(orders) == 4


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("global_batch", [3, 10, 64])
def test_shards_of_a_batch_do_not_depend_on_the_ranks(size: int, global_batch: int) -> None:
    alone = [Sampler(103, global_batch, 7, shard, 8) for shard in range(8)]
    ranks = [Sampler(103, global_batch, 7, rank, size, shards=8) for rank in range(size)]
    for step in range(2 * ranks[0].steps_per_epoch):
        batches = [sampler.batch(step) for sampler in ranks]
        parts = {shard: part for batch in batches for shard, part in batch.parts.items()}
        assert [list(batch.parts) for batch in batches] == torch.arange(8).view(size, -1).tolist()
        for shard, part in parts.items():
            assert torch.equal(part, alone[shard].batch(step).indices)
        for batch in batches:
            assert torch.equal(batch.indices, torch.cat(list(batch.parts.values())))
            assert batch.local_count == len(batch.indices)
