"""Data sets by name: what a factory returns, and the two tasks that the data sets at hand pose.

A data set is held in memory, whole, on every rank: the sampler names samples by their index, so that a
batch does not depend on which rank asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trainer.errors import TrainerError
from trainer.registry import Registry

# (outputs, targets) -> scalar summed over the samples. Sums, because only sums add up over ranks.
Sum = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """What is minimised, and what else an evaluation reports (each divided by the count of samples there)."""

    loss: Sum
    measures: Mapping[str, Sum]


@dataclass(frozen=True)
class Dataset:
    """Inputs and targets, first axis samples. `shape` is what a model has to fit: options for its factory."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    task: Task
    shape: Mapping[str, int]

    def __post_init__(self) -> None:
        for part, (inputs, targets) in (("train", self.train), ("test", self.test)):
            if len(inputs) != len(targets) or not len(inputs):
                raise TrainerError(
                    f"{part} data: expected as many targets as inputs and at least one, "
                    f"got {len(inputs)} inputs and {len(targets)} targets"
                )


DATA: Registry[Dataset] = Registry("data", "trainer.data")


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="sum")


def _correct(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(-1) == targets).sum()


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(outputs, targets, reduction="sum")


def _absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.l1_loss(outputs, targets, reduction="sum")


CLASSIFICATION = Task(_cross_entropy, {"accuracy": _correct})
REGRESSION = Task(_squared_error, {"absolute_error": _absolute_error})


def hold_out(samples: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """Splits `samples` into (train, test); test is the last `fraction` of them, at least one."""
    if not 0 < fraction < 1:
        raise TrainerError(f"test_fraction: expected a number between 0 and 1, got {fraction}")
    test = min(max(1, round(fraction * len(samples))), len(samples) - 1)
    return torch.tensor_split(samples, [len(samples) - test])  # type: ignore[return-value]
