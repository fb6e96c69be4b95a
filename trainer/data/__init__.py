"""Data sets by name: what a factory returns, and the tasks that the data sets at hand pose.

A data set is held in memory, whole, on every rank: the sampler names samples by their index, so that a
batch does not depend on which rank asks. Factories take `seed` and options; those at hand take
`test_fraction` and `validation_fraction`, shares of all samples. There is no validation split unless it is
asked for; it comes out of the training split, and the test split stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trainer.errors import TrainerError
from trainer.registry import Registry

# (outputs, targets) -> scalar summed over the samples. Sums, because only sums add up over ranks.
Sum = Callable[[Tensor, Tensor], Tensor]
Split = tuple[Tensor, Tensor]  # inputs and targets, first dim samples


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
    """The splits, what to do with them, and `shape`: what a model has to fit, options for its factory."""

    train: Split
    test: Split
    task: Task
    shape: Mapping[str, int | tuple[int, ...]]
    validation: Split | None = None

    def __post_init__(self) -> None:
        for name, (inputs, targets) in self.splits().items():
            if len(inputs) != len(targets) or not len(inputs):
                raise TrainerError(
                    f"{name} data: expected as many targets as inputs and at least one, "
                    f"got {len(inputs)} inputs and {len(targets)} targets"
                )

    def splits(self) -> dict[str, Split]:
        """By name; `validation` only if there is one."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}


DATA: Registry[Dataset] = Registry("data", "trainer.data")


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Logits (..., classes) and class numbers (...) of any integer dtype -> nats, summed."""
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten().long(), reduction="sum")


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
