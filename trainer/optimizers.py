"""Optimizers by name, and the learning rate each gets when none is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from trainer.errors import TrainerError
from trainer.registry import call, together

# Learning rates that train the models at hand in a few epochs, not recommendations.
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], float]] = {
    "sgd": (torch.optim.SGD, 0.1),
    "adagrad": (torch.optim.Adagrad, 0.01),
    "adam": (torch.optim.Adam, 0.005),
    "adamw": (torch.optim.AdamW, 0.005),
}


def make_optimizer(
    name: str, parameters: Iterable[Tensor], lr: float | None, /, **options: Any
) -> torch.optim.Optimizer:
    """`options` are the torch class's own, such as momentum or weight_decay."""
    if name not in OPTIMIZERS:
        raise TrainerError(f"no optimizer {name!r}; there is {', '.join(OPTIMIZERS)}")
    make, _ = OPTIMIZERS[name]
    decided = {"lr": learning_rate(name, lr)}
    return call(
        f"optimizer {name!r}", make, parameters, **together("optimizer_options", options, decided, "--lr")
    )


def learning_rate(name: str, lr: float | None) -> float:
    """`lr`, or that of the optimizer if it is None."""
    return OPTIMIZERS[name][1] if lr is None else lr


def maker(
    name: str, lr: float | None, options: Mapping[str, Any]
) -> Callable[[Iterable[Tensor]], torch.optim.Optimizer]:
    """make_optimizer() for whatever parameters."""
    return lambda parameters: make_optimizer(name, parameters, lr, **options)
