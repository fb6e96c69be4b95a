"""Evaluation over all ranks: every sample counts exactly once, at any number of ranks.

A split is shared out in parts, each with forwards of its own, whose sums every rank adds up in the same
order: the bits of the result depend on the number of parts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from pycomm import Communicator
from trainer.data import Split, Task
from trainer.sampler import own_shards
from trainer.tree import tree_sum

CHUNK = 1024  # samples, or tokens, in one forward


def evaluate(
    model: nn.Module,
    task: Task,
    split: Split,
    comm: Communicator,
    shards: int | None = None,
    after_forward: Callable[[], None] = lambda: None,
) -> dict[str, float | int]:
    """Loss and measures, each per sample or token, and their `count`. Collective, blocks.

    All ranks get the same numbers; sums are added in float64. shards: a multiple of the ranks, their number
    if not given. after_forward: called when this rank has made its forwards, of which ranks make different
    numbers.
    """
    shards = comm.size if shards is None else shards
    own = own_shards(shards, comm.rank, comm.size)
    sums = torch.zeros(len(own), 2 + len(task.measures), dtype=torch.float64)
    for row, shard in zip(sums, own, strict=True):
        for outputs, expected in forwards(model, task, split, share(len(split[0]), shard, shards)):
            row += torch.tensor(
                [
                    task.counts(expected).sum().item(),
                    task.loss(outputs, expected).item(),
                    *(measure(outputs, expected).item() for measure in task.measures.values()),
                ],
                dtype=torch.float64,
            )
    after_forward()
    columns = comm.all_gather(sums).view(shards, -1).T.tolist()
    count, *rest = (tree_sum(column) for column in columns)
    values = {name: total / count for name, total in zip(("loss", *task.measures), rest, strict=True)}
    return {**values, "count": int(count)}


def share(count: int, part: int, parts: int) -> Tensor:
    """The indices of that part's samples, as numpy.array_split(range(count), parts) has them."""
    return torch.from_numpy(np.array_split(np.arange(count), parts)[part])


def forwards(model: nn.Module, task: Task, split: Split, mine: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The model's outputs, and the targets, for the samples of those indices: in their order, some at a time.

    The model is in evaluation mode meanwhile. Does not communicate.
    """
    inputs, targets = split
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
