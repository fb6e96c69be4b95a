"""1,000 points of y = 3x + 2 + noise with x ~ U(0, 10) and noise ~ N(0, 1): a line whose answer is known.

The last fifth of the points is the test split; the points are independent, so any split is a random one.
"""

from __future__ import annotations

import torch

from trainer.data import DATA, REGRESSION, Dataset
from trainer.splits import hold_out

SLOPE, INTERCEPT = 3.0, 2.0


@DATA.register("linear")
def linear(
    seed: int, count: int = 1000, test_fraction: float = 0.2, validation_fraction: float = 0.0
) -> Dataset:
    random = torch.Generator().manual_seed(seed)
    x = 10 * torch.rand(count, 1, generator=random)
    y = SLOPE * x + INTERCEPT + torch.randn(count, 1, generator=random)
    train, validation, test = (
        (x[part], y[part]) for part in hold_out(torch.arange(count), test_fraction, validation_fraction)
    )
    shape = {"inputs": 1, "outputs": 1}
    return Dataset(train, test, REGRESSION, shape, validation if len(validation[0]) else None)
