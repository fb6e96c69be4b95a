"""A small convolutional network for grey or colour images: two convolutions, each halved by pooling, then one
affine map (after LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from trainer.errors import TrainerError
from trainer.models import MODELS

SMALLEST = 4  # pixels a side: two poolings leave one


@MODELS.register("cnn")
def cnn(
    inputs: Sequence[int] = (1, 28, 28), outputs: int = 10, width: int = 16, dropout: float = 0.0
) -> nn.Module:
    """`inputs`: channels, height and width of an image. `width`: channels of the first convolution.
    `dropout`: the probability that an input of the affine map is left out of a training step.

    20,490 parameters for images of 28x28, 6,090 for 8x8.
    """
    if not isinstance(inputs, Sequence) or len(inputs) != 3 or min(inputs[1:]) < SMALLEST:
        raise TrainerError(
            f"model 'cnn': expected images of (channels, height, width) with sides of {SMALLEST} or more, "
            f"got inputs of {inputs}"
        )
    if width < 1:
        raise TrainerError(f"model 'cnn': expected a width of 1 or more, got {width}")
    channels, height, image_width = inputs
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Flatten(), nn.Dropout(dropout)),
        nn.Linear(2 * width * (height // 4) * (image_width // 4), outputs),
    )
