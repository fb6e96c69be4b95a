"""Data sets and models as a user writes them, named in tests as `own_data:factory`.

Sample i of all kinds is the same: three numbers and a class, so that runs on different kinds can be compared.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, default_collate

from trainer.data import CLASSIFICATION, REGRESSION, Dataset

CLASSES = 3
TEST = 11  # samples
Sample = tuple[Tensor, int]


def sample(i: int) -> Sample:
    return torch.tensor([i % 7, i % 5, i % 3], dtype=torch.float32) / 7, i % CLASSES


def tensors(indices: Any) -> tuple[Tensor, Tensor]:
    samples = [sample(int(i)) for i in indices]
    return torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])


class Points(TorchDataset[Sample]):
    """`read`: of all of these in this process, the indices in the order in which they were asked for."""

    read: list[int] = []  # noqa: RUF012

    def __init__(self, count: int, first: int = 0, noise: bool = False) -> None:
        self.count, self.first, self.noise = count, first, noise

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < self.count:
            raise IndexError(i)
        Points.read.append(i)
        x, y = sample(self.first + i)
        return (x + torch.rand(3) + np.random.rand() + random.random() if self.noise else x), y


class Broken(Points):
    """Which is wrong in one sample, 57, in the way `how`."""

    def __init__(self, count: int, how: str) -> None:
        super().__init__(count)
        self.how = how

    def __getitem__(self, i: int) -> Any:
        x, y = super().__getitem__(i)
        if i != 57:
            return x, y
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "raise":
            raise KeyError("no such image")
        return {"nan": (x * torch.nan, y), "shape": (x[:2], y), "dict": {"x": x}, "text": ("x", y)}[self.how]


class Endless(IterableDataset[Sample]):
    """Which ends all the same: samples start, start + step, … below `count`."""

    def __init__(self, count: int, step: int = 1, start: int = 0, fails_at: int | None = None) -> None:
        self.count, self.step, self.start, self.fails_at = count, step, start, fails_at

    def __iter__(self) -> Iterator[Sample]:
        for i in range(self.start, self.count, self.step):
            if i == self.fails_at:
                raise OSError("stale file handle")
            yield sample(i)


class Shards(Endless):
    def shard(self, num_shards: int, index: int) -> Endless:
        return Endless(self.count, num_shards, index, self.fails_at)


class Late(Endless):
    """Of which the last shard has all."""

    def shard(self, num_shards: int, index: int) -> Endless:
        return Endless(self.count if index == num_shards - 1 else 0)


class Shuffled(Endless):
    """Drawn from the global generators, with noise."""

    def __iter__(self) -> Iterator[Sample]:
        for i in torch.randperm(self.count).tolist():
            x, y = sample(i)
            yield x + torch.rand(3), y


def model(width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, CLASSES))


def frozen() -> nn.Module:
    return model().requires_grad_(False)


def memory(count: int = 103) -> Dataset:
    return Dataset(tensors(range(count)), tensors(range(count, count + TEST)), CLASSIFICATION)


def points(count: int = 103, noise: bool = False) -> Dataset:
    return Dataset(Points(count, noise=noise), Points(TEST, count), CLASSIFICATION)


def beside(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Makes of a sample what depends on those beside it, as padding does, and on random numbers."""
    x, y = default_collate(samples)
    return x - x.amax(0) * torch.rand(1), y


def collated(count: int = 103) -> Dataset:
    return Dataset(Points(count), Points(TEST, count), CLASSIFICATION, collate=beside)


def collated_stream(count: int = 103) -> Dataset:
    return Dataset(Endless(count), Endless(TEST), CLASSIFICATION, collate=beside)


def broken(how: str, count: int = 103) -> Dataset:
    return Dataset(Broken(count, how), Points(TEST), CLASSIFICATION)


def broken_test(how: str) -> Dataset:
    return Dataset(Points(103), Broken(TEST + 57, how), CLASSIFICATION)


def stream(kind: str = "Endless", count: int = 103, fails_at: int | None = None) -> Dataset:
    train = globals()[kind](count, fails_at=fails_at)
    return Dataset(train, globals()[kind](TEST), CLASSIFICATION)


def sorted_shards(rank: int, size: int, kind: str = "memory", count: int = 103) -> Dataset:
    """The samples of memory(), sorted by class and dealt in unequal parts: rank r has r + 1 of size (size +
    1) / 2 parts of the training samples, so that hardly any rank sees all classes."""
    order = sorted(range(count), key=lambda i: i % CLASSES)
    cuts = [count * r * (r + 1) // (size * (size + 1)) for r in (rank, rank + 1)]
    mine, test = order[cuts[0] : cuts[1]], range(count + rank, count + TEST, size)
    if kind == "stream":
        return Dataset(Listed(mine), Listed(test), CLASSIFICATION)
    if kind == "points":
        return Dataset(Chosen(mine), Chosen(test), CLASSIFICATION)
    return Dataset(tensors(mine), tensors(test), CLASSIFICATION)


class Chosen(TorchDataset[Sample]):
    def __init__(self, indices: Any) -> None:
        self.indices = list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Sample:
        return sample(self.indices[i])


class Listed(IterableDataset[Sample]):
    def __init__(self, indices: Any) -> None:
        self.indices = list(indices)

    def __iter__(self) -> Iterator[Sample]:
        return map(sample, self.indices)


def file(path: str, standardise: Any = None) -> Dataset:
    with np.load(Path(path)) as there:
        x, y = torch.from_numpy(there["x"]), torch.from_numpy(there["y"])
    return Dataset((x, y), (x[:2], y[:2]), REGRESSION, {"inputs": 2, "outputs": 1}, standardise=standardise)


def no_model() -> str:
    return "model"


def no_data() -> tuple[list[int], list[int]]:
    return [1], [2]


def options(**given: Any) -> Dataset:
    assert set(given) == {"seed", "count"}, given
    return memory(given["count"])
