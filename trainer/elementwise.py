"""Whether an optimizer may step on slices of parameters: whether it treats every element by itself.

SGD, Adagrad, Adam, AdamW, RMSprop, NAdam, RAdam and the like do. Those that look at a whole parameter
(norms of it, rows and columns, its number of dimensions) do not: Adafactor, Muon, LBFGS, LAMB. It is found
by trial, so that it holds for optimizers of any origin.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from trainer.errors import TrainerError

ROWS, COLUMNS = 16, 64  # of the parameter that is tried; half of it is whole rows
STEPS = 3
TRIAL_LR = 0.01


def check_elementwise(optimizer: torch.optim.Optimizer) -> None:
    """Raises TrainerError unless halves of a parameter, each stepped alone, end as the whole one, to the bit.

    Each parameter group's settings are tried, on memory of their own; the optimizer stays as it is.
    """
    name = type(optimizer).__name__
    refusal = f"optimizer {name} cannot be sharded: "
    for index, group in enumerate(optimizer.param_groups):
        generator = torch.Generator().manual_seed(0)
        # The halves differ in magnitude, so that a norm over the whole shows.
        magnitude = torch.tensor([1.0, 100.0]).repeat_interleave(ROWS // 2)[:, None]
        draws = [torch.randn(ROWS, COLUMNS, generator=generator) * magnitude for _ in range(STEPS + 1)]
        whole = nn.Parameter(draws[0].clone())
        halves = [nn.Parameter(half.clone()) for half in draws[0].flatten().chunk(2)]
        try:
            _steps(optimizer, group, [whole], draws[1:])
            _steps(optimizer, group, halves, draws[1:])
        except Exception as error:
            raise TrainerError(
                f"{refusal}step() on slices of a parameter raises {type(error).__name__}: {error}"
            ) from error
        if not torch.equal(whole.detach().flatten(), torch.cat([half.detach() for half in halves])):
            raise TrainerError(
                f"{refusal}with the settings of group {index}, two halves of a parameter do not end as the "
                "whole one: an update of an element depends on others; use data_parallel"
            )


def _steps(
    optimizer: torch.optim.Optimizer,
    group: dict[str, Any],
    parameters: list[nn.Parameter],
    gradients: list[Tensor],
) -> None:
    settings = copy.deepcopy({name: value for name, value in group.items() if name != "params"})
    if "lr" in settings:  # the schedule may have it at almost nothing
        settings["lr"] = settings["lr"] * 0 + TRIAL_LR
    trial = _like(optimizer, {**settings, "params": parameters})
    for gradient in gradients:
        for parameter, part in zip(parameters, gradient.flatten().chunk(len(parameters)), strict=True):
            parameter.grad = part.clone().view(parameter.shape)
        type(trial).step(trial)


def _like(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> torch.optim.Optimizer:
    """An optimizer of the same class and settings over one group, without state, hooks or schedulers."""
    trial = object.__new__(type(optimizer))
    own = {
        name: value
        for name, value in vars(optimizer).items()
        if name not in ("state", "param_groups")
        and not name.startswith("_optimizer_")
        and not callable(value)
    }
    vars(trial).update(copy.deepcopy(own))
    trial.__setstate__({"state": defaultdict(dict), "param_groups": [group]})
    return trial
