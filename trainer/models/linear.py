"""One affine map: linear regression, or softmax regression under a classification loss."""

from __future__ import annotations

from torch import nn

from trainer.models import MODELS


@MODELS.register("linear")
def linear(inputs: int = 1, outputs: int = 1) -> nn.Module:
    return nn.Linear(inputs, outputs)
