"""Data sets by name: what a factory returns, and the tasks that the data sets at hand pose.

A split is two tensors, held whole by every rank; or a torch Dataset, whose samples (input, target) are read
when they are needed; or an IterableDataset (trainer/reading). Factories take `seed` and options; those at
hand take `test_fraction` and `validation_fraction`, shares of all samples. There is no validation split
unless it is asked for; it comes out of the training split, and the test split stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset

from trainer.errors import TrainerError
from trainer.reading import Pair, Readable
from trainer.registry import Registry

# (outputs, targets) -> scalar summed over the samples. Sums, because only sums add up over ranks.
Sum = Callable[[Tensor, Tensor], Tensor]
Split = Pair | TorchDataset[Any] | Readable


def one_each(targets: Tensor) -> Tensor:
    """Every sample counts once."""
    return torch.ones(len(targets), dtype=torch.int64)


def all_tokens(targets: Tensor) -> Tensor:
    """A sample counts as often as it has targets: (samples, length) -> length for each."""
    return torch.full((len(targets),), targets[0].numel() if len(targets) else 0, dtype=torch.int64)


def most_likely(outputs: Tensor) -> Tensor:
    """The class with the largest output."""
    return outputs.argmax(-1)


def as_it_is(outputs: Tensor) -> Tensor:
    return outputs


@dataclass(frozen=True)
class Task:
    """What is minimised, and over what its mean is taken.

    Args:
        loss: summed over what `counts` counts
        measures: what else an evaluation reports, sums of the same kind
        counts: targets -> how much each sample counts (int64): losses and measures are divided by the total
        predict: outputs -> predictions, one for each sample or token
    """

    loss: Sum
    measures: Mapping[str, Sum]
    counts: Callable[[Tensor], Tensor] = one_each
    predict: Callable[[Tensor], Tensor] = as_it_is


@dataclass(frozen=True)
class Dataset:
    """The splits, what to do with them, and `shape`: what a model has to fit, options for its factory.

    Args:
        train, test, validation: two tensors, inputs and targets, whose first dim is samples; or a torch
            Dataset of samples (input, target), map-style or iterable
        task: the loss, what else is measured, and over what both are means
        shape: options of the same names for the model's factory, as far as it takes them
        collate: a list of such samples -> inputs and targets (torch's default_collate if not given)
        standardise: subtract the mean of the training inputs of all ranks from all inputs and divide by
            their standard deviation: "all" takes both over all numbers, "each" for each place in a sample
    """

    train: Split
    test: Split
    task: Task
    shape: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    validation: Split | None = None
    collate: Callable[[list[Any]], Any] | None = None
    standardise: Literal["all", "each"] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.task, Task):
            raise TrainerError(f"task: expected a trainer.data.Task, got a {type(self.task).__name__}")
        for name, split in self.splits().items():
            _check_split(name, split)

    def splits(self) -> dict[str, Split]:
        """By name; `validation` only if there is one."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}


def _check_split(name: str, split: Split) -> None:
    if isinstance(split, tuple) and len(split) == 2 and all(isinstance(part, Tensor) for part in split):
        inputs, targets = split
        if not inputs.ndim or not targets.ndim or len(inputs) != len(targets) or not len(inputs):
            raise TrainerError(
                f"{name} data: expected as many targets as inputs and at least one, "
                f"got {_samples(inputs)} inputs and {_samples(targets)} targets"
            )
    elif isinstance(split, TorchDataset) and not isinstance(split, IterableDataset):
        if not hasattr(split, "__len__") or not len(split):
            raise TrainerError(f"{name} data: expected a torch Dataset of at least one sample, with a length")
    elif not isinstance(split, IterableDataset | Readable):
        kind = f"a {type(split).__name__}"
        if isinstance(split, tuple):
            kind += f" of {', '.join(type(part).__name__ for part in split)}"
        raise TrainerError(
            f"{name} data: expected two tensors, inputs and targets, or a torch Dataset, got {kind}"
        )


def _samples(part: Tensor) -> int:
    return len(part) if part.ndim else 0


DATA: Registry[Dataset] = Registry("data", "trainer.data", Dataset)


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Logits (..., classes) and class numbers (...) of any integer dtype -> nats, summed.

    Raises TrainerError for numbers that are no class; -100 is a target that does not count, as in torch.
    """
    _check_classes(targets, outputs.shape[-1])
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten().long(), reduction="sum")


IGNORED = -100


def _check_classes(targets: Tensor, classes: int) -> None:
    if targets.is_floating_point():
        raise TrainerError(f"targets: expected class numbers of an integer dtype, got {targets.dtype}")
    if not targets.numel():
        return
    lowest, highest = (int(bound) for bound in targets.aminmax())
    if lowest < 0:
        counting = targets[targets != IGNORED]
        lowest = int(counting.min()) if len(counting) else 0
    if lowest < 0 or highest >= classes:
        raise TrainerError(
            f"targets: expected classes from 0 to {classes - 1}, as many as the model has outputs, "
            f"got {lowest if lowest < 0 else highest}"
        )


def _bits(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets) / math.log(2)


def _correct(outputs: Tensor, targets: Tensor) -> Tensor:
    return (most_likely(outputs) == targets).sum()


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(outputs, targets, reduction="sum")


def _absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.l1_loss(outputs, targets, reduction="sum")


CLASSIFICATION = Task(cross_entropy, {"accuracy": _correct}, predict=most_likely)
REGRESSION = Task(_squared_error, {"absolute_error": _absolute_error})
# Tokens that are bytes: the loss is in nats per byte.
NEXT_BYTE = Task(cross_entropy, {"bits_per_byte": _bits, "accuracy": _correct}, all_tokens, most_likely)
