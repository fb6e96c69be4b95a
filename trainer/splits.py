"""How samples are divided into training, validation and test splits that share none."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.errors import TrainerError

Parts = tuple[Tensor, Tensor, Tensor]  # train, validation, test


def hold_out(samples: Tensor, test_fraction: float, validation_fraction: float = 0.0) -> Parts:
    """Divides `samples` in their order: test is the last `test_fraction` of them, validation what is before.

    Test has at least one sample, validation too unless its fraction is 0. What is test does not depend on
    validation_fraction.
    """
    test = _count("test_fraction", test_fraction, len(samples)) if test_fraction else 0
    if not test:
        raise TrainerError(f"test_fraction: expected a number between 0 and 1, got {test_fraction}")
    validation = _count("validation_fraction", validation_fraction, len(samples))
    train = len(samples) - test - validation
    if train < 1:
        raise TrainerError(
            f"nothing is left for training: of {len(samples)} samples, test_fraction {test_fraction} takes "
            f"{test} and validation_fraction {validation_fraction} takes {validation}"
        )
    return torch.tensor_split(samples, [train, train + validation])  # type: ignore[return-value]


def stratified(labels: Tensor, seed: int, test_fraction: float, validation_fraction: float) -> Parts:
    """Indices of samples, drawn with the seed: the same share of every label in each split."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    parts = [
        hold_out(shuffled[labels[shuffled] == label], test_fraction, validation_fraction)
        for label in labels.unique()  # type: ignore[no-untyped-call]
    ]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))  # type: ignore[return-value]


def _count(name: str, fraction: float, samples: int) -> int:
    if not 0 <= fraction < 1:
        raise TrainerError(f"{name}: expected a number between 0 and 1, got {fraction}")
    return min(max(1, round(fraction * samples)), samples - 1) if fraction else 0
