"""How the learning rate changes over a run, by name. A new schedule is one more entry of SCHEDULES.

Each is a scheduler of torch.optim.lr_scheduler, stepped once after every optimizer step. With `warmup` steps
before it, step s of them has s / (warmup + 1) of the learning rate, and the step that follows all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
    StepLR,
)

from trainer.errors import TrainerError
from trainer.registry import call

Schedule = Callable[..., LRScheduler]  # (optimizer, steps, **options)


def constant(optimizer: Optimizer, steps: int) -> LRScheduler:
    return ConstantLR(optimizer, factor=1.0, total_iters=0)


def linear(optimizer: Optimizer, steps: int, final: float = 0.0) -> LRScheduler:
    """Falls in a straight line, to `final` of the learning rate after the last step."""
    return LinearLR(optimizer, start_factor=1.0, end_factor=final, total_iters=steps)


def cosine(optimizer: Optimizer, steps: int, final: float = 0.0) -> LRScheduler:
    """Falls along half a cosine, to `final` of the learning rate after the last step (Loshchilov and Hutter,
    "SGDR", ICLR 2017, without restarts)."""
    if not 0 <= final <= 1:
        raise TrainerError(f"schedule 'cosine': final: expected 0 to 1, got {final}")
    return CosineAnnealingLR(optimizer, T_max=steps, eta_min=final * optimizer.param_groups[0]["initial_lr"])


def step(optimizer: Optimizer, steps: int, every: int | None = None, gamma: float = 0.1) -> LRScheduler:
    """Multiplied by `gamma` after every so many steps (a third of the run if not given)."""
    if every is not None and every < 1:
        raise TrainerError(f"schedule 'step': every: expected 1 or more, got {every}")
    return StepLR(optimizer, step_size=every or -(-steps // 3), gamma=gamma)


SCHEDULES: dict[str, Schedule] = {"constant": constant, "linear": linear, "cosine": cosine, "step": step}


def make_schedule(
    name: str, optimizer: Optimizer, steps: int, warmup: int = 0, /, **options: Any
) -> LRScheduler:
    """`steps` of the whole run, warm-up included; `options` are the schedule's own."""
    if name not in SCHEDULES:
        raise TrainerError(f"no schedule {name!r}; there is {', '.join(SCHEDULES)}")
    if not 0 <= warmup < steps:
        raise TrainerError(f"warmup_steps: expected 0 to {steps - 1}, less than the run's, got {warmup}")
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    make = partial(call, f"schedule {name!r}", SCHEDULES[name], optimizer)
    if not warmup:
        return make(steps, **options)
    rising = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [rising, make(steps - warmup, **options)], [warmup])


def replay(schedule: LRScheduler, optimizer: Optimizer, steps: int) -> None:
    """To where it is after so many steps, with the rates of a run that was there, to the bit. The optimizer
    has no gradient yet: its step, which torch wants to see before a schedule's, does nothing."""
    if steps:
        optimizer.step()
    for _ in range(steps):
        schedule.step()
