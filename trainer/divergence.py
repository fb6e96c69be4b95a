"""What ends a run whose numbers are no longer finite: before the update that would spoil the parameters.

Every step's losses and combined gradients are looked at before the optimizer's step, so the parameters at an
error are still those of the last good step, and a copy of them need not be kept. Gradients are looked at too
because a finite loss can have an infinite gradient (a 16-bit codec overflows above 65,504); the cost is one
pass over them, less than that of any optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from pycomm import Communicator
from trainer.errors import CollectiveError, DivergedError, TrainerError
from trainer.files import on_rank_0
from trainer.sampler import Batch
from trainer.weights import LAST_GOOD, finite, save_weights


class StepLoss:
    """The loss of one step, from this rank's sum to the mean over all ranks, which is known later.

    The gathering starts between forward and backward, at the same place on every rank whatever the strategy
    launches afterwards, and has arrived when the gradients are combined.
    """

    def __init__(self, local_sum: float, batch: Batch, step: int, comm: Communicator) -> None:
        self._step = step
        self._global_count = batch.global_count
        self._work = comm.all_gather_async(torch.tensor([local_sum], dtype=torch.float64))

    def result(self) -> float:
        """Blocks. Raises DivergedError, on every rank, that names the ranks whose loss is not finite."""
        sums = self._work.wait().tolist()
        wrong = [rank for rank, value in enumerate(sums) if not math.isfinite(value)]
        if wrong:
            raise DivergedError(
                f"the loss is {sums[wrong[0]]} at step {self._step} on rank {', '.join(map(str, wrong))} "
                f"(of {len(sums)}); a smaller lr may help",
                self._step - 1,
            )
        return math.fsum(sums) / self._global_count


def check_gradients(model: nn.Module, step: int, comm: Communicator) -> None:
    """Raises DivergedError, on every rank where all have the same gradients. Does not communicate."""
    for name, parameter in model.named_parameters():
        if parameter.grad is None or not parameter.grad.numel():
            continue
        largest = torch.linalg.vector_norm(parameter.grad, math.inf).item()
        if not math.isfinite(largest):
            raise DivergedError(
                f"the gradient of {name} holds {largest} at step {step} on rank {comm.rank} "
                f"(of {comm.size}), while the loss is finite; a smaller lr, or codec none, may help",
                step - 1,
            )


def check_evaluation(values: dict[str, float | int], what: str, step: int) -> None:
    """Raises DivergedError, on every rank. Does not communicate."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise DivergedError(f"the {what} {name} is {value} after step {step}", step)


@contextmanager
def last_good_kept(out: Path, model: nn.Module, comm: Communicator) -> Iterator[None]:
    """When what it wraps diverges, rank 0 writes the parameters to out/last_good.safetensors; the error says
    so, or why not. Collective then."""
    try:
        yield
    except DivergedError as error:
        step, kept = error.step, f"{out / LAST_GOOD} has the parameters after step {error.step}"
        try:
            on_rank_0(comm, lambda: _keep(out, model, step))
        except CollectiveError as failure:
            kept = str(failure)
        raise DivergedError(f"{error}; {kept}", step) from error


def _keep(out: Path, model: nn.Module, step: int) -> None:
    if not finite(model):
        raise TrainerError(f"the parameters or buffers after step {step} are not finite and were not kept")
    save_weights(out / LAST_GOOD, model, step)
