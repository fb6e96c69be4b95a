"""Samples that stay on their ranks: unequal, sorted by class, and trained on as if they lay together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_data import CLASSES, TEST, memory, model, sorted_shards
from own_runs import losses, train

from pycomm.testing import run_threads
from trainer import PredictConfig, predict
from trainer.errors import CollectiveError
from trainer.reading.local import LocalOrder, places
from trainer.weights import load_weights

LAYOUTS = [[5], [1, 1], [10, 20], [1, 102], [7, 7, 7], [1, 50, 3, 49], [2, 3, 5, 7, 11], [97, 0, 6]]


@pytest.mark.parametrize("sizes", LAYOUTS)
def test_the_places_of_all_ranks_are_a_permutation_in_the_order_of_fractions(sizes: list[int]) -> None:
    found = {}
    for rank in range(len(sizes)):
        for k, place in enumerate(places(sizes, rank).tolist() if sizes[rank] else []):
            found[place] = ((2 * k + 1) / (2 * sizes[rank]), rank)
    assert sorted(found) == list(range(sum(sizes)))
    assert [found[place] for place in sorted(found)] == sorted(found.values())


@pytest.mark.parametrize("sizes", LAYOUTS)
@pytest.mark.parametrize("global_batch", [1, 4, 16, 1000])
def test_an_epoch_has_every_sample_once_and_each_rank_its_share(sizes: list[int], global_batch: int) -> None:
    orders = [LocalOrder(sizes, global_batch, 3, rank) for rank in range(len(sizes))]
    total = sum(sizes)
    steps = orders[0].steps_per_epoch
    assert {order.steps_per_epoch for order in orders} == {steps}
    for epoch in range(2):
        taken: list[list[int]] = [[] for _ in sizes]
        for step in range(epoch * steps, (epoch + 1) * steps):
            batches = [order.batch(step) for order in orders]
            expected = min(orders[0].global_batch, total - (step % steps) * orders[0].global_batch)
            assert [batch.global_count for batch in batches] == [expected] * len(sizes)
            assert sum(len(batch.indices) for batch in batches) == expected
            for rank, batch in enumerate(batches):
                assert abs(len(batch.indices) - expected * sizes[rank] / total) < len(sizes)
                taken[rank] += batch.indices.tolist()
        assert [sorted(indices) for indices in taken] == [list(range(size)) for size in sizes]


def test_epochs_ranks_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, rank: int, epoch: int) -> tuple[int, ...]:
        return tuple(LocalOrder([20, 20], 40, seed, rank).batch(epoch).indices.tolist())

    assert len({order(seed, rank, epoch) for seed in (0, 1) for rank in (0, 1) for epoch in (0, 1)}) == 8
    assert order(0, 1, 1) == order(0, 1, 1)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("kind", ["memory", "points"])
def test_with_all_samples_in_a_step_it_is_the_pooled_run(size: int, kind: str, tmp_path: Path) -> None:
    _, pooled = train(1, tmp_path / "pooled", "memory", global_batch=103)
    options: dict[str, Any] = {"data_local": True, "data_options": {"kind": kind}, "global_batch": 103}
    summary, rows = train(size, tmp_path / "local", "sorted_shards", **options)
    assert losses(rows) == pytest.approx(losses(pooled), rel=1e-5)
    assert summary["eval"]["count"] == TEST
    assert [row["samples"] for row in rows] == [103] * 17


@pytest.mark.parametrize("size", [2, 4])
def test_a_step_is_the_mean_over_whatever_samples_are_in_it(size: int, tmp_path: Path) -> None:
    """One process, given the samples that the ranks' orders name, makes the same steps."""
    sizes = [len(sorted_shards(rank, size).train[1]) for rank in range(size)]
    orders = [LocalOrder(sizes, 16, 0, rank) for rank in range(size)]
    local = [sorted_shards(rank, size).train for rank in range(size)]
    train(size, tmp_path, "sorted_shards", data_local=True)
    torch.manual_seed(0)
    alone = model()
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.5)
    for step in range(17):
        parts = [order.batch(step).indices for order in orders]
        x, y = (torch.cat([local[r][i][part] for r, part in enumerate(parts)]) for i in (0, 1))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(alone(x), y).backward()
        optimizer.step()
    trained = model()
    load_weights(tmp_path / "model.safetensors", trained)
    for got, expected in zip(trained.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [2, 4])
def test_sorted_shards_end_where_pooled_training_ends(size: int, tmp_path: Path) -> None:
    """Other samples per step, so not the same run: within a tenth after 20 epochs of seven steps."""
    options: dict[str, Any] = {"steps": 140, "lr": 1.0, "schedule": "cosine"}
    pooled, _ = train(1, tmp_path / "pooled", "memory", **options)
    local, _ = train(size, tmp_path / "local", "sorted_shards", **options, data_local=True)
    assert local["eval"]["loss"] == pytest.approx(pooled["eval"]["loss"], rel=0.1)
    assert local["eval"]["accuracy"] == pooled["eval"]["accuracy"] == 1


def test_the_summary_says_who_has_what(tmp_path: Path) -> None:
    summary, _ = train(4, tmp_path, "sorted_shards", data_local=True, steps=1)
    spread = summary["data_local"]
    assert spread["samples"] == [10, 20, 31, 42]
    assert [sum(labels) for labels in spread["labels"]] == spread["samples"]
    assert spread["labels"][0] == [10, 0, 0]
    pooled = memory().train[1].bincount(minlength=CLASSES).tolist()
    assert [sum(column) for column in zip(*spread["labels"], strict=True)] == pooled


@pytest.mark.parametrize("kind", ["memory", "points", "stream"])
def test_a_resumed_run_is_the_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data_local": True, "save_every": 10, "data_options": {"kind": kind}}
    whole, rows = train(3, tmp_path / "whole", "sorted_shards", **options)
    out = tmp_path / "resumed"
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "step-000010", out / "checkpoints" / "step-000010")
    again, later = train(3, out, "sorted_shards", **options, resume="auto")
    assert losses(later) == losses(rows[10:])
    assert again["param_sha256"] == whole["param_sha256"]


def test_another_number_of_ranks_is_refused_with_the_reason(tmp_path: Path) -> None:
    options: dict[str, Any] = {"data_local": True, "save_every": 5, "steps": 5}
    train(3, tmp_path, "sorted_shards", **options)
    with pytest.raises(CollectiveError, match=r"with data_local .* as many ranks .* expected \[17, 34, 52\]"):
        train(2, tmp_path, "sorted_shards", **{**options, "steps": 7}, resume="auto")


def test_a_stream_of_each_rank_ends_with_the_longest(tmp_path: Path) -> None:
    """17, 34 and 52 samples; a rank takes 6, 5 or 5 of a batch of 16, so 11 steps until the last one is
    through."""
    options: dict[str, Any] = {"data_local": True, "data_options": {"kind": "stream"}, "steps": 22}
    summary, rows = train(3, tmp_path, "sorted_shards", **options)
    assert [row["epoch"] for row in rows] == [0] * 11 + [1] * 11
    assert sum(row["samples"] for row in rows[:11]) == sum(row["samples"] for row in rows[11:]) == 103
    assert summary["eval"]["count"] == TEST
    assert summary["data_local"] == {"samples": [None] * 3}


def test_predictions_come_rank_by_rank(tmp_path: Path) -> None:
    train(3, tmp_path, "sorted_shards", data_local=True)
    config = PredictConfig(tmp_path, split="train", out=tmp_path / "p.npy", threads=1)
    run_threads(3, lambda comm: predict(config, comm))
    trained = model()
    load_weights(tmp_path / "model.safetensors", trained)
    inputs = torch.cat([sorted_shards(rank, 3).train[0] for rank in range(3)])
    assert np.array_equal(np.load(tmp_path / "p.npy"), trained(inputs).argmax(1))
    with pytest.raises(CollectiveError, match="as many ranks"):
        run_threads(2, lambda comm: predict(config, comm))


def files(folder: Path, sizes: list[int]) -> tuple[torch.Tensor, str]:
    """A file for each rank; their inputs together, and the name."""
    random = torch.Generator().manual_seed(0)
    parts = [100 + 3 * torch.randn(size, 2, generator=random) * torch.tensor([1, 9]) for size in sizes]
    for rank, part in enumerate(parts):
        np.savez(folder / f"part-{rank}.npz", x=part.numpy(), y=part.sum(1, keepdim=True).numpy())
    return torch.cat(parts), f"{folder}/part-{{rank}}.npz"


@pytest.mark.parametrize("how", ["all", "each"])
def test_inputs_are_standardised_by_the_statistics_of_all_ranks(how: str, tmp_path: Path) -> None:
    from trainer.reading.loading import Reading, load

    inputs, path = files(tmp_path, [3, 8])

    def rank(comm: Any) -> torch.Tensor:
        reading = Reading(0, local=True, rank=comm.rank, size=comm.size)
        loaded = load("own_data:file", {"path": path, "standardise": how}, reading, comm)
        return loaded.dataset.train.mine.pair[0]

    got = torch.cat(run_threads(2, rank))
    dims = (0,) if how == "each" else (0, 1)
    wide = inputs.double()
    expected = (wide - wide.mean(dims)) / wide.std(dims, correction=0)
    torch.testing.assert_close(got, expected.float(), rtol=1e-5, atol=1e-6)


def test_a_missing_file_is_told_with_its_rank(tmp_path: Path) -> None:
    _, path = files(tmp_path, [3])
    with pytest.raises(CollectiveError, match=r"rank 1: .*part-1.npz"):
        train(2, tmp_path / "run", "file", data_local=True, model="linear", data_options={"path": path})


def test_a_rank_without_samples_is_told(tmp_path: Path) -> None:
    _, path = files(tmp_path, [3, 0])
    with pytest.raises(CollectiveError, match=r"rank 1: train data: .* at least one, got 0 inputs"):
        train(2, tmp_path / "run", "file", data_local=True, model="linear", data_options={"path": path})


def test_samples_of_other_shapes_on_other_ranks_are_told(tmp_path: Path) -> None:
    _, path = files(tmp_path, [3, 3])
    np.savez(tmp_path / "part-1.npz", x=np.ones((3, 5), np.float32), y=np.ones((3, 1), np.float32))
    with pytest.raises(CollectiveError, match=r"shapes of samples .* differ from rank 0's on rank 1"):
        train(2, tmp_path / "run", "file", data_local=True, model="linear", data_options={"path": path})


def test_without_data_local_no_factory_learns_its_rank(tmp_path: Path) -> None:
    with pytest.raises(CollectiveError, match="missing a required argument: 'rank'"):
        train(2, tmp_path, "sorted_shards")
