"""Samples of a user's data set as tensors: one by one, then as a batch; what cannot be one is said with its
number.

An error is a value here, a Failure: it may have to come from a worker, and must not end one rank alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from trainer.errors import TrainerError, described
from trainer.reading import Pair
from trainer.reading.randomness import aside, seed

Collate = Callable[[list[Any]], Any]
PROBE = 2**32 - 1  # the epoch that a sample is read in to see what samples look like
COLLATE = 1  # the last word of a collate's random numbers, which are not those of its first sample


@dataclass(frozen=True)
class Failure:
    said: str


Collated = Pair | Failure | None

Key = tuple[int, int]  # epoch and index


class Items(Dataset[Any]):
    """Keys of each part of a batch -> that part, from what the data set has there. `first`: the number of
    sample 0 over all ranks, for its random numbers."""

    def __init__(
        self, dataset: Any, name: str, seed_word: int, collate: Collate | None = None, first: int = 0
    ) -> None:
        self._dataset = dataset
        self._name = name
        self._seed = seed_word
        self._batching = Batching(name, collate)
        self._first = first

    def __getitems__(self, parts: Sequence[Sequence[Key]]) -> list[Collated]:
        """What DataLoader asks for, a batch at a time."""
        return [self._part(keys) for keys in parts]

    def _part(self, keys: Sequence[Key]) -> Collated:
        if not keys:
            return None
        with aside():
            numbered = [self._item(epoch, index) for epoch, index in keys]
        epoch, index = keys[0]
        return self._batching(numbered, self._seed, epoch, self._first + index)

    def _item(self, epoch: int, index: int) -> tuple[int, Any]:
        seed(self._seed, epoch, self._first + index)
        try:
            return index, self._dataset[index]
        except Exception as error:
            return index, Failure(f"{self._name} sample {index}: {described(error)}")


@dataclass(frozen=True)
class Batching:
    """Numbered samples -> inputs and targets; None for no samples, a Failure for what is no batch. A user's
    collate draws its random numbers from generators that are seeded with `words`."""

    name: str
    collate: Collate | None = None

    def __call__(self, numbered: Sequence[tuple[int, Any]], *words: int) -> Collated:
        if not numbered:
            return None
        try:
            if self.collate is None:
                return self._batch(numbered)
            with aside():
                seed(*words, COLLATE)
                return self._batch(numbered)
        except TrainerError as error:
            return Failure(f"{self.name} {error}")
        except Exception as error:
            numbers = ", ".join(str(number) for number, _ in numbered[:8])
            return Failure(f"{self.name} samples {numbers} …: no batch of them: {described(error)}")

    def _batch(self, numbered: Sequence[tuple[int, Any]]) -> Pair | Failure:
        for number, sample in numbered:
            if isinstance(sample, Failure):
                return sample
            if not isinstance(sample, tuple | list) or len(sample) != 2:
                raise TrainerError(f"sample {number}: expected (input, target), got {_kind(sample)}")
        if self.collate is None:
            _check_alike(numbered)
        batch = (self.collate or default_collate)([sample for _, sample in numbered])
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TrainerError(f"collate: expected inputs and targets, got {_kind(batch)}")
        inputs, targets = batch
        for what, part in (("inputs", inputs), ("targets", targets)):
            if not isinstance(part, Tensor) or part.ndim == 0 or len(part) != len(numbered):
                raise TrainerError(
                    f"{what}: expected a tensor whose first dim is the {len(numbered)} samples, "
                    f"got {_kind(part)}"
                )
            if has_nan(part):
                row = nan_row(part)
                raise TrainerError(f"sample {numbered[row][0]}: its {what[:-1]} holds nan")
        return inputs, targets


def has_nan(part: Tensor) -> bool:
    return part.is_floating_point() and bool(part.isnan().any())


def nan_row(part: Tensor) -> int:
    return (
        int(part.isnan().flatten(1).any(1).nonzero()[0]) if part.ndim > 1 else int(part.isnan().nonzero()[0])
    )


def _check_alike(numbered: Sequence[tuple[int, Any]]) -> None:
    """default_collate's own error names neither the samples nor which part of them."""
    first, like = numbered[0]
    for number, sample in numbered[1:]:
        for what, one, other in zip(("input", "target"), sample, like, strict=True):
            if _shape(one) != _shape(other):
                raise TrainerError(
                    f"sample {number}: its {what} has shape {_shape(one)}, that of sample {first} "
                    f"{_shape(other)}; samples of different sizes need a `collate` in the Dataset"
                )


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list | dict):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def no_rows(pair: Pair) -> Pair:
    return torch.empty_like(pair[0][:0]), torch.empty_like(pair[1][:0])
