"""Forward and backward of this rank's samples of a step, in one pass or in several.

Each part of the batch that the rank has (sampler.py) is a pass, or `accumulate` of them, micro-batches as
numpy.array_split cuts them, so that activations take the memory of one. The step is the same whatever their
number: losses are sums, and the division is by the count of all passes of all ranks. In exact mode gradients
of several passes are added up as a tree (tree.py), else as autograd and the strategy do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import Tensor

from pycomm import Communicator, trace_span
from trainer import streams
from trainer.divergence import StepLoss
from trainer.errors import TrainerError
from trainer.exact import BufferWatch
from trainer.precision import wide
from trainer.preparation import Run
from trainer.sampler import Batch
from trainer.tree import GradientTree


def forward_backward(
    run: Run, batch: Batch, step: int, comm: Communicator, trouble: TrainerError | None, written: bool
) -> StepLoss:
    """Leaves the gradients of this rank's loss in the parameters; none if the rank has no sample.

    All ranks go through equally many passes, for what a strategy reduces in between; a rank without a sample
    in one of them computes nothing there, unless the model's forward is collective. Targets that the task
    refuses are trouble of all ranks, told with the loss.
    """
    tree = GradientTree([p for p in run.model.parameters() if p.requires_grad]) if run.exact else None
    watch = BufferWatch(run.model.named_buffers()) if run.exact else None
    sums: list[float] = []
    refused: list[TrainerError] = []
    *earlier, (part, indices) = _passes(run, batch)
    for one, samples in earlier:
        with _adding_up(run, tree):
            _backward(run, _forward(run, one, samples, step, sums, refused), batch, step)
    summed = _forward(run, part, indices, step, sums, refused)
    if refused:
        trouble = trouble or refused[0]
    if watch is not None:
        trouble = trouble or watch.trouble(run.model.named_buffers())
    # Between forward and backward, see StepLoss.
    loss = StepLoss(sums, batch, step, comm, trouble, written=written)
    with nullcontext() if tree is None else tree.completed():
        _backward(run, summed, batch, step)
    return loss


def _passes(run: Run, batch: Batch) -> list[tuple[int | None, Tensor]]:
    """The samples of each pass, and the part of the batch whose random numbers begin with it: None where
    those of the pass before go on."""
    return [
        (None if index else part, indices)
        for part, samples in batch.parts.items()
        for index, indices in enumerate(samples.tensor_split(run.accumulate))
    ]


@contextmanager
def _adding_up(run: Run, tree: GradientTree | None) -> Iterator[None]:
    """Around a pass that others of the step follow."""
    if tree is None:
        with run.strategy.no_sync():
            yield
    else:
        with run.strategy.keeping_gradients():
            yield
        tree.take()


def _forward(
    run: Run, part: int | None, indices: Tensor, step: int, sums: list[float], refused: list[TrainerError]
) -> Tensor | None:
    """The sum of the losses of these samples, which goes to `sums` too; None where nothing is computed.

    Where the task refuses them its error goes to `refused`. The rank goes on with zero: others wait for it in
    what backward has of collectives, and no update follows.
    """
    if part is not None:
        streams.begin(run.seed, step, part)
    if not len(indices) and not run.joint_forward:
        sums.append(0.0)
        return None
    inputs, targets = run.source.take(indices)
    with trace_span("forward", step=step):
        with run.precision.autocast():
            outputs = run.model(inputs)
        try:
            summed: Tensor = run.dataset.task.loss(wide(outputs), targets)
        except TrainerError as error:
            if not isinstance(outputs, Tensor):
                raise
            refused.append(error)
            summed = outputs.sum() * 0
    sums.append(0.0 if refused else summed.item())
    return summed


def _backward(run: Run, summed: Tensor | None, batch: Batch, step: int) -> None:
    if summed is not None:
        with trace_span("backward", step=step):
            run.precision.scaled(run.strategy.loss(summed, batch)).backward()  # type: ignore[no-untyped-call]
