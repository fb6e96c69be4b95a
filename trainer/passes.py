"""Forward and backward of this rank's samples of a step: one pass for each part of the batch that it has.

A pass draws its own random numbers. Gradients of several passes are added up as a tree (tree.py), of which
the strategy gets the result in the backward of the last one.
"""

from __future__ import annotations

from torch import Tensor

from pycomm import Communicator, trace_span
from trainer import streams
from trainer.divergence import StepLoss
from trainer.errors import TrainerError
from trainer.exact import BufferWatch
from trainer.preparation import Run
from trainer.sampler import Batch
from trainer.tree import GradientTree


def forward_backward(
    run: Run, batch: Batch, step: int, comm: Communicator, trouble: TrainerError | None, written: bool
) -> StepLoss:
    """Leaves the gradients of this rank's loss in the parameters; none if the rank has no sample."""
    tree = GradientTree([parameter for parameter in run.model.parameters() if parameter.requires_grad])
    watch = BufferWatch(run.model.named_buffers()) if run.exact else None
    sums: list[float] = []
    *earlier, last = batch.parts
    for part in earlier:
        summed = _forward(run, batch, part, step, sums)
        with run.strategy.keeping_gradients():
            _backward(run, summed, batch, step)
        tree.take()
    summed = _forward(run, batch, last, step, sums)
    if watch is not None:
        trouble = trouble or watch.trouble(run.model.named_buffers())
    loss = StepLoss(sums, batch, step, comm, trouble, written=written)
    with tree.completed():
        _backward(run, summed, batch, step)
    return loss


def _forward(run: Run, batch: Batch, part: int, step: int, sums: list[float]) -> Tensor | None:
    """The sum of the losses of that part's samples, which goes to `sums` too; None without a sample."""
    indices = batch.parts[part]
    if not len(indices):
        sums.append(0.0)
        return None
    inputs, targets = run.dataset.train
    streams.begin(run.seed, step, part)
    with trace_span("forward", step=step):
        summed: Tensor = run.dataset.task.loss(run.model(inputs[indices]), targets[indices])
    sums.append(summed.item())
    return summed


def _backward(run: Run, summed: Tensor | None, batch: Batch, step: int) -> None:
    if summed is not None:
        with trace_span("backward", step=step):
            run.strategy.loss(summed, batch).backward()  # type: ignore[no-untyped-call]
