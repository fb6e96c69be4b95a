from __future__ import annotations

from typing import Any

import pytest
import torch
from own_data import Points, tensors
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import TensorDataset

from pycomm.testing import run_threads
from trainer.data import CLASSIFICATION, DATA, Dataset
from trainer.errors import CollectiveError, TrainerError
from trainer.reading.loading import Reading, factory_options, load
from trainer.reading.mapped import Mapped


class Words(TorchDataset[Any]):
    """Of one to five letters."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, i: int) -> Any:
        return torch.arange(i % 5 + 1), i % 3


def padded(samples: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.nn.utils.rnn.pad_sequence([x for x, _ in samples], batch_first=True, padding_value=-1)
    return inputs, torch.tensor([y for _, y in samples])


def tensor_dataset() -> Dataset:
    return Dataset(TensorDataset(*tensors(range(5))), Points(3), CLASSIFICATION)


def words(pad: bool = True) -> Dataset:
    return Dataset(Words(), Words(), CLASSIFICATION, collate=padded if pad else None)


def of_rank(rank: int) -> Dataset:
    raise AssertionError(rank)


def split_of(name: str, **options: Any) -> Any:
    made = f"{__name__}:{name}"
    return run_threads(1, lambda comm: load(made, options, Reading(0), comm))[0].dataset.train


def test_a_tensor_dataset_is_its_tensors_and_others_are_read() -> None:
    train = split_of("tensor_dataset")
    assert all(torch.equal(one, other) for one, other in zip(train, tensors(range(5)), strict=True))


def test_samples_of_different_sizes_become_a_batch_by_collate() -> None:
    train = split_of("words")
    assert isinstance(train, Mapped)
    ((inputs, targets),) = train.chunks(CLASSIFICATION, 0, 1, 1000)
    expected_inputs, expected_targets = padded([Words()[i] for i in range(9)])
    assert torch.equal(inputs, expected_inputs)
    assert torch.equal(targets, expected_targets)


def test_without_collate_they_are_told() -> None:
    train = split_of("words", pad=False)
    with pytest.raises(TrainerError, match=r"sample 1: its input has shape \(2,\), that of sample 0 \(1,\)"):
        list(train.chunks(CLASSIFICATION, 0, 1, 1000))


def test_rank_and_size_are_numbers_in_options_of_local_data_alone() -> None:
    given = {"path": "/data/{rank}-of-{size}", "more": ["x{rank}", 3], "count": 7}
    name = "own_data:file"
    local = factory_options(name, given, Reading(5, local=True, rank=2, size=4))
    assert local == {"path": "/data/2-of-4", "more": ["x2", 3], "count": 7}
    assert factory_options(name, given, Reading(5)) == given


def test_a_factory_is_given_what_it_takes() -> None:
    reading = Reading(5, local=True, rank=2, size=4)
    assert factory_options(f"{__name__}:of_rank", {}, reading) == {"rank": 2}
    assert factory_options("own_data:sorted_shards", {}, reading) == {"rank": 2, "size": 4}
    assert factory_options("linear", {"count": 3}, reading) == {"seed": 5, "count": 3}
    with pytest.raises(TrainerError, match="data_options: rank is decided by"):
        factory_options(f"{__name__}:of_rank", {"rank": 0}, reading)


@DATA.register("test_differing")
def differing(seed: int) -> Dataset:
    return Dataset(Points(5, noise=True), Points(5, first=int(torch.randint(10**9, ()))), CLASSIFICATION)


def test_data_sets_that_differ_are_told_though_they_are_not_in_memory() -> None:
    with pytest.raises(CollectiveError, match="data 'test_differing' differ from rank 0's on rank 1"):
        run_threads(2, lambda comm: load("test_differing", {}, Reading(0), comm))


def means(standardise: str | None) -> Dataset:
    """Of so many numbers that torch's threads share out a sum of them."""
    x = torch.randn(300, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.arange(300) % 2
    if standardise is None:
        x = (x - x.mean()) / x.std()
    return Dataset((x, y), (x[:5], y[:5]), CLASSIFICATION, standardise=standardise)


@pytest.mark.parametrize("standardise", [None, "all"])
def test_bits_of_data_do_not_depend_on_the_number_of_threads(standardise: str | None) -> None:
    before = torch.get_num_threads()
    options = {"standardise": standardise}

    def rank(comm: Any, threads: int) -> str:
        torch.set_num_threads(threads)
        loaded = load(f"{__name__}:means", options, Reading(seed=0), comm)
        assert torch.get_num_threads() == threads
        return loaded.sha256

    try:
        hashes = {run_threads(1, lambda comm, t=threads: rank(comm, t))[0] for threads in (1, 2, 3)}
    finally:
        torch.set_num_threads(before)
    assert len(hashes) == 1


class Scaled(TorchDataset[Any]):
    """Samples that are sums of many numbers."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> Any:
        x = torch.randn(100_000, dtype=torch.float64)
        return x[:8] / x.std(), i % 2


def scaled() -> Dataset:
    return Dataset(Scaled(), Scaled(), CLASSIFICATION)


def test_bits_of_samples_do_not_depend_on_the_number_of_threads() -> None:
    before = torch.get_num_threads()

    def rank(comm: Any, threads: int) -> str:
        torch.set_num_threads(threads)
        return load(f"{__name__}:scaled", {}, Reading(seed=0), comm).sha256

    try:
        hashes = {run_threads(1, lambda comm, t=threads: rank(comm, t))[0] for threads in (1, 2, 3)}
    finally:
        torch.set_num_threads(before)
    assert len(hashes) == 1
