"""One affine map: linear regression, or softmax regression under a classification loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from trainer.models import MODELS


class Affine(nn.Linear):
    """Of all numbers of a sample, whatever its shape."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))


@MODELS.register("linear")
def linear(inputs: int | Sequence[int] = 1, outputs: int = 1) -> nn.Module:
    """`inputs`: the shape of a sample, or how many numbers it has."""
    return Affine(inputs if isinstance(inputs, int) else math.prod(inputs), outputs)
