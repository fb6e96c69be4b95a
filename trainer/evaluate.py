"""Evaluation over all ranks: every sample counts exactly once, at any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pycomm import Communicator
from trainer.data import Split, Task
from trainer.files import on_every_rank
from trainer.reading.memory import readable

CHUNK = 1024  # samples, or tokens, in one forward


def evaluate(model: nn.Module, task: Task, split: Split, comm: Communicator) -> dict[str, float | int]:
    """Loss and measures, each per sample or token, and their `count`. Collective, blocks.

    All ranks get the same numbers; sums are added in float64. Raises CollectiveError for samples that some
    rank cannot read.
    """
    sums = on_every_rank(comm, lambda: _sums(model, task, split, comm))
    comm.all_reduce(sums)
    count, *rest = sums.tolist()
    values = {name: total / count for name, total in zip(("loss", *task.measures), rest, strict=True)}
    return {**values, "count": int(count)}


def _sums(model: nn.Module, task: Task, split: Split, comm: Communicator) -> Tensor:
    """This rank's: count, loss and measures."""
    sums = torch.zeros(2 + len(task.measures), dtype=torch.float64)
    for outputs, expected in forwards(model, task, split, comm.rank, comm.size):
        sums += torch.tensor(
            [
                task.counts(expected).sum().item(),
                task.loss(outputs, expected).item(),
                *(measure(outputs, expected).item() for measure in task.measures.values()),
            ],
            dtype=torch.float64,
        )
    return sums


def forwards(
    model: nn.Module, task: Task, split: Split, part: int, parts: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The model's outputs, and the targets, for part `part` of `parts` of the samples, some at a time.

    The model is in evaluation mode meanwhile. Does not communicate.
    """
    training = model.training
    model.eval()
    try:
        for inputs, targets in readable(split).chunks(task, part, parts, CHUNK):
            with torch.no_grad():
                outputs = model(inputs)
            yield outputs, targets
    finally:
        model.train(training)
