"""A multi-layer perceptron with ReLU: 784-128-10 unless told otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from trainer.errors import TrainerError
from trainer.models import MODELS


class MLP(nn.Sequential):
    """Affine layers of the given sizes (inputs first, outputs last) with a ReLU between any two, and dropout
    after it."""

    def __init__(self, sizes: Sequence[int], dropout: float = 0.0) -> None:
        if len(sizes) < 2 or any(not isinstance(size, int) or size < 1 for size in sizes):
            raise TrainerError(
                f"model 'mlp': expected at least two sizes, each an integer of 1 or more, got {sizes}"
            )
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.Sequential(nn.ReLU(), nn.Dropout(dropout))]
        super().__init__(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = super().forward(x.flatten(1))  # type: ignore[no-untyped-call]
        return outputs


@MODELS.register("mlp")
def mlp(
    inputs: int | Sequence[int] = 784,
    outputs: int = 10,
    hidden: int | Sequence[int] = 128,
    dropout: float = 0.0,
) -> nn.Module:
    """`inputs`: the shape of a sample, or how many numbers it has. `hidden`: the sizes in between. `dropout`:
    the probability that a hidden number is left out of a training step."""
    first = inputs if isinstance(inputs, int) else math.prod(inputs)
    return MLP([first, *([hidden] if isinstance(hidden, int) else hidden), outputs], dropout)
