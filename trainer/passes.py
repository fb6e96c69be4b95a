"""Forward and backward of this rank's samples of a step, in one pass or in several micro-batches.

A micro-batch is part of the rank's share of the step, as numpy.array_split cuts it, so the step is the same
whatever their number: losses are sums, and the division is by the count of all micro-batches of all ranks.
Activations take the memory of one micro-batch.
"""

from __future__ import annotations

from torch import Tensor

from pycomm import Communicator, trace_span
from trainer.divergence import StepLoss
from trainer.errors import TrainerError
from trainer.precision import wide
from trainer.preparation import Run
from trainer.sampler import Batch


def forward_backward(
    run: Run, batch: Batch, step: int, comm: Communicator, trouble: TrainerError | None, written: bool
) -> StepLoss:
    """Leaves the gradients of this rank's loss in the parameters; none if the rank has no sample.

    All ranks go through equally many passes, for what a strategy reduces in between; a rank without a sample
    in one of them computes nothing there, unless the model's forward is collective.
    """
    *before, last = batch.indices.tensor_split(run.accumulate)
    local_sum = 0.0
    for indices in before:
        with run.strategy.no_sync():
            summed = _forward(run, indices, step)
            local_sum += _value(summed)
            _backward(run, summed, batch, step)
    summed = _forward(run, last, step)
    # Between forward and backward, see StepLoss.
    loss = StepLoss(local_sum + _value(summed), batch, step, comm, trouble, written=written)
    _backward(run, summed, batch, step)
    return loss


def _forward(run: Run, indices: Tensor, step: int) -> Tensor | None:
    """The sum of the samples' losses."""
    if not len(indices) and not run.joint_forward:
        return None
    inputs, targets = run.dataset.train
    with trace_span("forward", step=step):
        with run.precision.autocast():
            outputs = run.model(inputs[indices])
        return run.dataset.task.loss(wide(outputs), targets[indices])


def _value(summed: Tensor | None) -> float:
    return 0.0 if summed is None else summed.item()


def _backward(run: Run, summed: Tensor | None, batch: Batch, step: int) -> None:
    if summed is None:
        return
    with trace_span("backward", step=step):
        run.precision.scaled(run.strategy.loss(summed, batch)).backward()
