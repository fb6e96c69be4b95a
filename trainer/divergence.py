"""What ends a run whose numbers are no longer finite: before the update that would spoil the parameters.

Every step's losses and combined gradients are looked at before the optimizer's step, so the parameters at an
error are still those of the last good step, and no copy of them need be kept. Gradients are looked at too
because a finite loss can have an infinite gradient (a 16-bit codec overflows above 65,504); the cost is one
pass over them, less than that of any optimizer.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

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


class LastGood:
    """When what it wraps diverges, rank 0 writes the model to out/last_good.safetensors, and the error says
    so, or why not. Collective then.

    Parameters need no copy, as said above; buffers, which a forward changes (BatchNorm's statistics), do.
    """

    def __init__(self, out: Path, model: nn.Module, comm: Communicator) -> None:
        self._path = out / LAST_GOOD
        self._model = model
        self._comm = comm
        self._buffers: list[Tensor] = []
        self._begun = 0

    def before(self, step: int) -> None:
        """To be called before the forward of `step`."""
        self._buffers = [buffer.clone() for buffer in self._model.buffers()]
        self._begun = step

    def __enter__(self) -> LastGood:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if not isinstance(error, DivergedError):
            return
        kept = f"{self._path} has the parameters after step {error.step}"
        try:
            on_rank_0(self._comm, lambda: self._keep(error.step))
        except CollectiveError as failure:
            kept = str(failure)
        raise DivergedError(f"{error}; {kept}", error.step) from error

    def _keep(self, step: int) -> None:
        if step < self._begun:
            with torch.no_grad():
                for buffer, before in zip(self._model.buffers(), self._buffers, strict=True):
                    buffer.copy_(before)
        if not finite(self._model):
            raise TrainerError(f"the parameters after step {step} are not finite and were not kept")
        save_weights(self._path, self._model, step)
