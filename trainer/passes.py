"""Forward and backward of this rank's samples of a step."""

from __future__ import annotations

from torch import Tensor

from pycomm import Communicator, trace_span
from trainer.divergence import StepLoss
from trainer.errors import TrainerError
from trainer.preparation import Run
from trainer.sampler import Batch


def forward_backward(
    run: Run, batch: Batch, step: int, comm: Communicator, trouble: TrainerError | None, written: bool
) -> StepLoss:
    """Leaves the gradients of this rank's loss in the parameters; none if the rank has no sample."""
    if not len(batch.indices):
        return StepLoss(0.0, batch, step, comm, trouble, written=written)
    inputs, targets = run.source.take(batch.indices)
    with trace_span("forward", step=step):
        summed: Tensor = run.dataset.task.loss(run.model(inputs), targets)
    loss = StepLoss(summed.item(), batch, step, comm, trouble, written=written)
    with trace_span("backward", step=step):
        run.strategy.loss(summed, batch).backward()
    return loss
