"""Evaluation over all ranks: every sample counts exactly once, at any number of ranks.

A split is shared out in parts, each with forwards of its own, whose sums every rank adds up in the same
order: the bits of the result depend on the number of parts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pycomm import Communicator
from trainer.data import Split, Task
from trainer.files import on_every_rank
from trainer.reading.memory import readable
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
    numbers. Raises CollectiveError for samples that some rank cannot read.
    """
    shards = comm.size if shards is None else shards
    own = own_shards(shards, comm.rank, comm.size)

    def forward() -> Tensor:
        try:
            return torch.stack([_sums(model, task, split, shard, shards) for shard in own])
        finally:
            after_forward()

    sums = on_every_rank(comm, forward)
    columns = comm.all_gather(sums).view(shards, -1).T.tolist()
    count, *rest = (tree_sum(column) for column in columns)
    values = {name: total / count for name, total in zip(("loss", *task.measures), rest, strict=True)}
    return {**values, "count": int(count)}


def _sums(model: nn.Module, task: Task, split: Split, part: int, parts: int) -> Tensor:
    """That part's: count, loss and measures."""
    sums = torch.zeros(2 + len(task.measures), dtype=torch.float64)
    for outputs, expected in forwards(model, task, split, part, parts):
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
