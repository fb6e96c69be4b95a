"""Evaluation over all ranks: every sample counts exactly once, at any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from pycomm import Communicator
from trainer.data import Split, Task

CHUNK = 1024  # samples, or tokens, in one forward


def evaluate(
    model: nn.Module,
    task: Task,
    split: Split,
    comm: Communicator,
    after_forward: Callable[[], None] = lambda: None,
) -> dict[str, float | int]:
    """Loss and measures, each per sample or token, and their `count`. Collective, blocks.

    All ranks get the same numbers; sums are added in float64. after_forward: called when this rank has made
    its forwards, of which ranks make different numbers.
    """
    sums = torch.zeros(2 + len(task.measures), dtype=torch.float64)
    for outputs, expected in forwards(model, task, split, comm):
        sums += torch.tensor(
            [
                task.counts(expected).sum().item(),
                task.loss(outputs, expected).item(),
                *(measure(outputs, expected).item() for measure in task.measures.values()),
            ],
            dtype=torch.float64,
        )
    after_forward()
    comm.all_reduce(sums)
    count, *rest = sums.tolist()
    values = {name: total / count for name, total in zip(("loss", *task.measures), rest, strict=True)}
    return {**values, "count": int(count)}


def share(count: int, rank: int, size: int) -> Tensor:
    """The indices of this rank's samples: part `rank` of numpy.array_split(range(count), size)."""
    return torch.from_numpy(np.array_split(np.arange(count), size)[rank])


def forwards(
    model: nn.Module, task: Task, split: Split, comm: Communicator
) -> Iterator[tuple[Tensor, Tensor]]:
    """The model's outputs, and the targets, for this rank's samples: in their order, some at a time.

    The model is in evaluation mode meanwhile. Does not communicate.
    """
    inputs, targets = split
    mine = share(len(inputs), comm.rank, comm.size)
    if not len(mine):
        return
    most = int(task.counts(targets[mine]).max())
    training = model.training
    model.eval()
    try:
        for chunk in mine.split(max(1, CHUNK // max(1, most))):
            with torch.no_grad():
                outputs = model(inputs[chunk])
            yield outputs, targets[chunk]
    finally:
        model.train(training)
