"""What ends a run on all ranks: numbers that are no longer finite, before the update that would spoil the
parameters; a row that rank 0 could not write.

Every step's losses and gradients are looked at before the optimizer's step, so the parameters at an error are
still those of the last good step, and no copy of them need be kept. Gradients are looked at too because a
finite loss can have an infinite gradient (a 16-bit codec overflows above 65,504); the cost is one pass over
them, less than that of any optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pycomm import Communicator
from trainer.errors import DivergedError, StoppedError, TrainerError
from trainer.files import first_message, on_every_rank
from trainer.sampler import Batch
from trainer.strategy import Strategy
from trainer.weights import finite


class StepLoss:
    """The loss of one step, from this rank's sums to the mean over all ranks, which is known later: of each
    rank equally many sums, one for each part of the batch that it has.

    The gathering starts between forward and backward, at the same place on every rank whatever the strategy
    launches afterwards, and has arrived when the gradients are combined. With it travels whether this rank
    has `trouble`, an error that all ranks should end with, and whether it has `written` its part of a
    checkpoint.
    """

    def __init__(
        self,
        sums: Sequence[float],
        batch: Batch,
        step: int,
        comm: Communicator,
        trouble: TrainerError | None,
        *,
        written: bool,
    ) -> None:
        self.all_written = False  # known with the result
        self._step = step
        self._parts = len(sums)
        self._global_count = batch.global_count
        self._comm = comm
        self._trouble = trouble
        told = torch.tensor([trouble is not None, written, *sums], dtype=torch.float64)
        self._work = comm.all_gather_async(told)

    def result(self) -> float:
        """Blocks. Raises, on every rank, DivergedError that names the ranks whose loss is not finite, or
        StoppedError that says what trouble a rank has."""
        told = self._work.wait().view(self._comm.size, -1)
        (troubled, written), sums = told[:, :2].T.tolist(), told[:, 2:].flatten().tolist()
        if any(troubled):
            raise StoppedError(first_message(self._comm, self._trouble), self._step - 1)
        wrong = [index for index, value in enumerate(sums) if not math.isfinite(value)]
        if wrong:
            ranks = sorted({index // self._parts for index in wrong})
            raise DivergedError(
                f"the loss is {sums[wrong[0]]} at step {self._step} on rank {', '.join(map(str, ranks))} "
                f"(of {self._comm.size}); a smaller lr may help",
                self._step - 1,
            )
        self.all_written = all(written)
        return math.fsum(sums) / self._global_count  # exactly rounded: in whatever order


def check_gradients(
    gradients: Iterable[tuple[str, Tensor]], step: int, comm: Communicator, *, equal: bool
) -> None:
    """Raises DivergedError, on every rank. Communicates unless the gradients are `equal` on all ranks."""
    problem = _not_finite(gradients, step, comm)
    message = str(problem or "") if equal else first_message(comm, problem)
    if message:
        raise DivergedError(message, step - 1)


def _not_finite(
    gradients: Iterable[tuple[str, Tensor]], step: int, comm: Communicator
) -> TrainerError | None:
    for name, gradient in gradients:
        if not gradient.numel():
            continue
        largest = torch.linalg.vector_norm(gradient, math.inf).item()
        if not math.isfinite(largest):
            return TrainerError(
                f"the gradient of {name} holds {largest} at step {step} on rank {comm.rank} "
                f"(of {comm.size}), while the loss is finite; a smaller lr, or codec none, may help"
            )
    return None


def check_evaluation(values: dict[str, float | int], what: str, step: int) -> None:
    """Raises DivergedError, on every rank. Does not communicate."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise DivergedError(f"the {what} {name} is {value} after step {step}", step)


class LastGood:
    """When what it wraps stops, rank 0 writes the model to last_good.safetensors, and the error says so, or
    why not. Collective then, but for an interrupted rank 0, which asks nobody.

    Parameters need no copy, as said above; buffers, which a forward changes (BatchNorm's statistics), do.
    """

    def __init__(
        self, path: Path, model: nn.Module, comm: Communicator, strategy: Strategy, save: Callable[..., None]
    ) -> None:
        """`save(path, step, write=…)`: Run.save."""
        self._path = path
        self._model = model
        self._comm = comm
        self._strategy = strategy
        self._save = save
        self._buffers: list[Tensor] = []
        self._begun = 0
        self._sound = False  # the parameters are those of the step before the one begun

    def before(self, step: int) -> None:
        """To be called before the forward of `step`, when the parameters may be read."""
        self._buffers = [buffer.clone() for buffer in self._model.buffers()]
        self._begun = step
        self._sound = True

    def updating(self) -> None:
        """To be called before the parameters change."""
        self._sound = False

    def __enter__(self) -> LastGood:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, StoppedError):
            step = error.step
            kept = self._outcome(step, lambda: on_every_rank(self._comm, lambda: self._keep(step)))
            raise type(error)(f"{error}; {kept}", step) from error
        if isinstance(error, KeyboardInterrupt) and self._comm.rank == 0:
            raise KeyboardInterrupt(self._kept_alone()) from error

    def _kept_alone(self) -> str:
        if not self._begun:
            return "before the first step"
        if not self._sound:
            return f"in or after the update of step {self._begun}, whose parameters were not kept"
        if self._strategy.sharded:
            return f"in step {self._begun}; the parameters, of which each rank has a part, were not kept"
        step = self._begun - 1
        return f"in step {self._begun}; {self._outcome(step, lambda: self._keep(step))}"

    def _outcome(self, step: int, keep: Callable[[], None]) -> str:
        try:
            keep()
        except TrainerError as failure:
            return str(failure)
        return f"{self._path} has the parameters after step {step}"

    def _keep(self, step: int) -> None:
        if step < self._begun:
            with torch.no_grad():
                for buffer, before in zip(self._model.buffers(), self._buffers, strict=True):
                    buffer.copy_(before)
        if not finite(self._model, self._strategy.whole):
            raise TrainerError(f"the parameters after step {step} are not finite and were not kept")
        self._save(self._path, step, write=self._comm.rank == 0)
