"""IterableDatasets: each sample counts once, whoever reads it, and all ranks end an epoch together."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_data import TEST, model, tensors
from own_runs import losses, train
from torch.utils.data import IterableDataset

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import DATA, FitConfig, PredictConfig, fit, predict
from trainer.data import CLASSIFICATION, Dataset
from trainer.errors import CollectiveError, StoppedError, TrainerError
from trainer.reading import Share
from trainer.reading.stream import Stream
from trainer.reading.workers import Workers
from trainer.weights import load_weights


class Numbers(IterableDataset[Any]):
    """Whose inputs say which sample it is. `epochs`: what set_epoch was told in this process."""

    def __init__(self, numbers: range) -> None:
        self.numbers = numbers
        self.epochs: list[int] = []

    def __iter__(self) -> Iterator[Any]:
        for number in self.numbers:
            yield torch.tensor([float(number)]), 0

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


class ShardedNumbers(Numbers):
    def shard(self, num_shards: int, index: int) -> Numbers:
        return Numbers(self.numbers[index::num_shards])


def epochs_of(dataset: Any, size: int, global_batch: int, steps: int, workers: int = 0) -> Any:
    """By step: epoch, and what each rank took."""

    def rank(comm: Communicator) -> list[tuple[int, list[int], int]]:
        stream = Stream(dataset, "train", 0, Workers(workers))
        source = stream.source(Share(comm, comm.rank, comm.size, global_batch, 0, CLASSIFICATION))
        batches = []
        for step in range(steps):
            batch = source.batch(step)
            inputs, _ = source.take(batch.indices)
            assert len(inputs) == batch.local_count
            batches.append((batch.epoch, inputs.flatten().int().tolist(), batch.global_count))
        source.close()
        return batches

    by_rank = run_threads(size, rank)
    steps_of = []
    for ranks in zip(*by_rank, strict=True):
        assert len({(epoch, total) for epoch, _, total in ranks}) == 1
        assert sum(len(numbers) for _, numbers, _ in ranks) == ranks[0][2]
        steps_of.append((ranks[0][0], [numbers for _, numbers, _ in ranks]))
    return steps_of


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(("count", "global_batch"), [(103, 10), (3, 16), (20, 10), (1, 1)])
def test_ranks_that_read_the_same_stream_take_parts_of_the_same_batches(
    size: int, count: int, global_batch: int
) -> None:
    each = -(-count // global_batch)
    steps = epochs_of(Numbers(range(count)), size, global_batch, 2 * each + 1)
    for step, (epoch, parts) in enumerate(steps):
        assert epoch == step // each
        start = step % each * global_batch
        expected = range(count)[start : start + global_batch]
        assert parts == [part.tolist() for part in np.array_split(expected, size)]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [103, 4])
def test_shards_have_every_sample_once_and_end_together(size: int, count: int) -> None:
    steps = epochs_of(ShardedNumbers(range(count)), size, 10, 40)
    for epoch in (0, 1):
        seen = [numbers for number, parts in steps if number == epoch for numbers in parts]
        assert sorted(sum(seen, [])) == list(range(count))  # noqa: RUF017
    assert steps[-1][0] > 1


@pytest.mark.parametrize("kind", [Numbers, ShardedNumbers])
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_every_sample_once(kind: type[Numbers], workers: int) -> None:
    steps = epochs_of(kind(range(23)), 1, 5, 9, workers)
    epochs = [sorted(number for e, parts in steps if e == epoch for number in parts[0]) for epoch in (0, 1)]
    assert epochs[0] == list(range(23))
    assert set(epochs[1]) <= set(range(23))
    if kind is Numbers:
        assert steps == epochs_of(kind(range(23)), 1, 5, 9, 0)


def test_a_batch_too_small_for_all_shards_is_refused() -> None:
    with pytest.raises(CollectiveError, match="global batch 2 leaves some of 3 ranks without samples"):
        epochs_of(ShardedNumbers(range(9)), 3, 2, 1)


def test_a_stream_is_told_its_epochs() -> None:
    numbers = Numbers(range(10))
    epochs_of(numbers, 1, 4, 7)
    assert numbers.epochs == [0, 0, 1, 2]  # the first time for the sample which is looked at


def test_a_stream_without_samples_is_told() -> None:
    with pytest.raises(TrainerError, match="expected a stream of samples, got one that is empty"):
        epochs_of(Numbers(range(0)), 2, 4, 1)


class FewShards(Numbers):
    def shard(self, num_shards: int, index: int) -> Numbers:
        if num_shards > 2:
            raise IndexError(f"there are 2 files for {num_shards} shards")
        return Numbers(self.numbers[index::num_shards])


def test_a_stream_that_refuses_so_many_shards_is_told() -> None:
    def rank(comm: Communicator) -> str:
        source = Stream(FewShards(range(9)), "train", 0, Workers()).source(
            Share(comm, comm.rank, comm.size, 8, 0, CLASSIFICATION)
        )
        assert not len(source.batch(0).indices)
        return str(source.trouble)

    for said in run_threads(3, rank):
        assert "train sample 0 of the stream: IndexError: there are 2 files for 3 shards" in said


class Once(Numbers):
    def __iter__(self) -> Iterator[Any]:
        numbers, self.numbers = self.numbers, range(0)
        return (number for number in [(torch.zeros(1), 0)] * len(numbers))


def test_a_stream_that_cannot_be_read_again_is_told_on_all_ranks() -> None:
    with pytest.raises(CollectiveError, match="epoch 0 of the training stream has no sample on any rank"):
        epochs_of(Once(range(3)), 1, 4, 2)


class Itself(Numbers):
    def __iter__(self) -> Itself:  # type: ignore[override]
        return self

    def __next__(self) -> Any:
        return torch.zeros(1), 0


def test_a_stream_that_is_its_own_iterator_is_refused() -> None:
    with pytest.raises(TrainerError, match="got one that is its own iterator: let __iter__ return a new one"):
        epochs_of(Itself(range(3)), 1, 4, 2)


@pytest.mark.parametrize("lengths", [(8, 16), (16, 8), (13, 16)])
def test_streams_that_differ_without_saying_so_are_told_on_all_ranks(lengths: tuple[int, int]) -> None:
    def rank(comm: Communicator) -> None:
        stream = Stream(Numbers(range(lengths[comm.rank])), "train", 0, Workers())
        source = stream.source(Share(comm, comm.rank, 2, 8, 0, CLASSIFICATION))
        for step in range(2):
            source.batch(step)

    with pytest.raises(CollectiveError, match=r"not the same on all ranks: expected parts of \[\d, \d\]"):
        run_threads(2, rank)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", ["Endless", "Shuffled"])
def test_a_run_does_not_depend_on_the_ranks(kind: str, size: int, tmp_path: Path) -> None:
    options = {"data_options": {"kind": kind}}
    expected, rows = train(1, tmp_path / "one", "stream", **options)
    got, others = train(size, tmp_path / "more", "stream", **options)
    assert losses(others) == pytest.approx(losses(rows), rel=1e-5)
    assert [row["epoch"] for row in others] == [0] * 7 + [1] * 7 + [2] * 3
    assert got["eval"]["count"] == TEST
    assert got["eval"]["loss"] == pytest.approx(expected["eval"]["loss"], rel=1e-5)


@pytest.mark.parametrize(("kind", "size"), [("Endless", 1), ("Endless", 3), ("Shuffled", 1), ("Shards", 2)])
def test_a_resumed_run_goes_on_at_the_exact_sample(kind: str, size: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data_options": {"kind": kind}, "save_every": 10}
    _, whole = train(2, tmp_path / "whole", "stream", **options)
    out = tmp_path / "resumed"
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "step-000010", out / "checkpoints" / "step-000010")
    _, rows = train(size, out, "stream", **options, resume="auto")
    assert losses(rows) == pytest.approx(losses(whole[10:]), rel=1e-5)
    assert [row["epoch"] for row in rows] == [1] * 4 + [2] * 3


@pytest.mark.parametrize("change", [{"size": 3}, {"workers": 2, "size": 1}])
def test_shards_of_another_number_are_refused_with_the_reason(change: dict[str, int], tmp_path: Path) -> None:
    options: dict[str, Any] = {"data_options": {"kind": "Shards"}, "save_every": 3}
    size = change.pop("size")
    train(1, tmp_path, "stream", **options, steps=3)
    with pytest.raises(CollectiveError, match=rf"read in 1 shards, .* and is now in {max(size, 2)}: resume"):
        train(size, tmp_path, "stream", **options, **change, resume="auto")


@pytest.mark.parametrize("size", [1, 3])
def test_an_error_of_the_stream_is_told_to_all_ranks(size: int, tmp_path: Path) -> None:
    words = r"train sample 50 of the stream: OSError: stale file handle \(own_data.py, line \d+\)"
    with pytest.raises(StoppedError, match=words):
        train(size, tmp_path, "stream", data_options={"fails_at": 50})


@pytest.mark.parametrize("option", [{"steps": None, "epochs": 1}, {"eval_every_epochs": 1}])
def test_epochs_of_a_stream_are_refused(option: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="is a stream"):
        train(2, tmp_path, "stream", **option)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("size", [1, 3])
def test_predictions_are_in_the_order_of_the_stream(size: int, tmp_path: Path) -> None:
    train(1, tmp_path, "stream", steps=5)
    config = PredictConfig(tmp_path, split="train", out=tmp_path / "p.npy", threads=1)
    run_threads(size, lambda comm: predict(config, comm))
    trained = model()
    load_weights(tmp_path / "model.safetensors", trained)
    assert np.array_equal(np.load(tmp_path / "p.npy"), trained(tensors(range(103))[0]).argmax(1))


def test_predictions_of_shards_of_which_rank_0_has_an_empty_one(tmp_path: Path) -> None:
    train(1, tmp_path, "memory", steps=2)
    options = {"data": "own_data:stream", "data_options": {"kind": "Late"}}
    config = PredictConfig(tmp_path, split="train", out=tmp_path / "p.npy", threads=1, **options)
    run_threads(3, lambda comm: predict(config, comm))
    trained = model()
    load_weights(tmp_path / "model.safetensors", trained)
    assert np.array_equal(np.load(tmp_path / "p.npy"), trained(tensors(range(103))[0]).argmax(1))


@DATA.register("test_uneven_tokens")
def uneven_tokens(seed: int) -> Dataset:
    """Samples that count as often as their target says."""
    task = replace(CLASSIFICATION, counts=lambda targets: targets + 1)
    return Dataset(Weighted(), Weighted(), task)


class Weighted(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        for number in range(9):
            yield torch.ones(3), number % 3


@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_samples_count_is_added_up_over_the_ranks(size: int, tmp_path: Path) -> None:
    config = FitConfig(
        data="test_uneven_tokens", model="own_data:model", steps=1, out=tmp_path, threads=1, lr=1e-3
    )
    summary = run_threads(size, lambda comm: fit(config, comm))[0]
    assert summary["eval"]["count"] == 18
    with torch.no_grad():
        torch.manual_seed(0)
        logits = model()(torch.ones(9, 3))
        summed = torch.nn.functional.cross_entropy(logits, torch.arange(9) % 3, reduction="sum").item()
    assert summary["loss_first"] == pytest.approx(summed / 18, rel=1e-5)
