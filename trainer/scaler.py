"""Losses scaled up before backward, so that small gradients are not lost in float16, and these scaled down.

The scale follows torch.amp.GradScaler's rule and defaults (Micikevicius et al., "Mixed Precision Training",
ICLR 2018): a step whose gradients are not finite is skipped and halves it, so many steps in a row without
one double it. All ranks skip a step or none does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor, nn

from pycomm import Communicator
from trainer.divergence import check_gradients
from trainer.errors import DivergedError, TrainerError
from trainer.strategy import Strategy


class LossScaler:
    """The scale of a run, the same on all ranks of `comm`. In a step:

        scaler.scaled(loss).backward()
        parallel.synchronize()
        if scaler.unscale(parallel, model):     # finite on all ranks
            parallel.clip_grad_norm_(1.0)
            optimizer.step()

    Args:
        initial: the first scale; with a power of two, and factors that are, scaling rounds nothing
        growth: what it is multiplied with after `interval` steps in a row that were taken
        backoff: what it is multiplied with after a step that was skipped
        interval: see growth
        least: with this scale, or less, a step is not skipped but an error: the gradients are not finite
            whatever the scale
    """

    def __init__(
        self,
        comm: Communicator,
        *,
        initial: float = 2.0**16,
        growth: float = 2.0,
        backoff: float = 0.5,
        interval: int = 2000,
        least: float = 1.0,
    ) -> None:
        if not (growth > 1 > backoff > 0 and interval >= 1 and initial >= least > 0):
            raise TrainerError(
                "loss scaler: expected growth > 1 > backoff > 0, an interval of 1 or more and initial >= "
                f"least > 0, got {growth}, {backoff}, {interval}, {initial} and {least}"
            )
        self._comm = comm
        self._growth, self._backoff, self._interval, self._least = growth, backoff, interval, least
        self.scale = initial
        self.skipped = 0  # steps of the run that were
        self._taken = 0  # in a row

    def scaled(self, loss: Tensor) -> Tensor:
        """What is to be back-propagated."""
        return loss * self.scale

    def unscale(self, strategy: Strategy, model: nn.Module) -> bool:
        """Divides this rank's reduced gradients by the scale, in place; returns whether the step is to be
        taken, the same on all ranks, and sets the scale of the next one. Call it after synchronize().
        Collective and blocks, unless all ranks have the same gradients.

        Raises TrainerError, on every rank, for gradients that are not finite at the least scale.
        """
        held = [gradient for _, gradient in strategy.gradients(model)]
        finite = all(bool(part.isfinite().all()) for part in held)
        if not strategy.equal_gradients:
            finite = bool(self._comm.all_reduce(np.array([finite], np.uint8), op="min")[0])
        if finite:
            for part in held:
                part.mul_(1 / self.scale)
        self._update(finite)
        return finite

    def state(self) -> dict[str, Any]:
        """For a checkpoint, in JSON."""
        return {"scale": self.scale, "taken": self._taken, "skipped": self.skipped}

    def restore(self, state: dict[str, Any]) -> None:
        self.scale, self._taken, self.skipped = state["scale"], state["taken"], state["skipped"]

    def _update(self, finite: bool) -> None:
        if not finite:
            if self.scale <= self._least:
                raise TrainerError(
                    f"gradients are not finite at a loss scale of {self.scale:g}, the least, whatever "
                    "the scale; a smaller lr, or a precision other than fp16, may help"
                )
            self.scale = max(self._least, self.scale * self._backoff)
            self.skipped += 1
            self._taken = 0
            return
        self._taken += 1
        if self._taken == self._interval:
            grown = self.scale * self._growth
            self.scale = grown if grown < math.inf else self.scale
            self._taken = 0


def take_step(
    scaler: LossScaler | None, strategy: Strategy, model: nn.Module, step: int, comm: Communicator
) -> bool:
    """Whether the optimizer is to step on the gradients that synchronize() left; they are unscaled then.

    Without a scaler, or at its least scale, raises DivergedError, on every rank, for those that are not
    finite.
    """
    if scaler is None:
        check_gradients(strategy.gradients(model), step, comm, equal=strategy.equal_gradients)
        return True
    try:
        return scaler.unscale(strategy, model)
    except TrainerError as error:
        raise DivergedError(f"{error}, at step {step}", step - 1) from error
