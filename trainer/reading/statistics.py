"""What is known of samples that lie on different ranks: only sums leave a rank, never a sample."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pycomm import Communicator
from trainer.errors import TrainerError
from trainer.files import on_every_rank
from trainer.reading import Readable
from trainer.reading.local import Own
from trainer.reading.memory import Memory, readable

if TYPE_CHECKING:
    from trainer.data import Dataset


def moments(x: Tensor, comm: Communicator | None, *, each: bool) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (of the population, so over n) of all ranks' samples, in float64: of all
    numbers, or for `each` place in a sample. Collective, blocks; without `comm` of these samples alone.

    In two passes, first the mean and then the squares of what differs from it, which loses no digits where
    the mean is large (Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance", 1983).
    """

    def total(values: Tensor) -> Tensor:
        summed = values.sum(0) if each else values.sum().reshape(1)
        return summed if comm is None else comm.all_reduce(summed.contiguous())

    x = x.double()
    count = total(torch.ones_like(x))
    mean = total(x) / count
    return mean, (total((x - mean).square()) / count).sqrt()


def standardised(dataset: Dataset, comm: Communicator) -> Dataset:
    """The data set as its `standardise` says; a place whose values are all equal becomes 0. Collective,
    blocks.

    Raises CollectiveError for splits that are not in memory.
    """
    how = dataset.standardise
    if how is None:
        return dataset
    splits = dataset.splits().items()
    memories = on_every_rank(comm, lambda: {name: _memory(name, split) for name, split in splits})
    train = memories["train"]
    own = isinstance(dataset.train, Readable) and dataset.train.own
    mean, deviation = moments(train.pair[0], comm if own else None, each=how == "each")
    deviation = torch.where(deviation > 0, deviation, 1.0)

    def split(memory: Memory) -> Any:
        inputs, targets = memory.pair
        scaled = Memory((((inputs - mean) / deviation).to(inputs.dtype), targets))
        return Own(scaled) if own else scaled

    return replace(dataset, standardise=None, **{name: split(memory) for name, memory in memories.items()})


def spread(dataset: Dataset, comm: Communicator) -> dict[str, Any]:
    """How many training samples each rank has, and where targets are classes, how many of each. Collective,
    blocks."""
    train = dataset.train
    assert isinstance(train, Own)
    targets = train.mine.pair[1] if isinstance(train.mine, Memory) else None
    labels = targets is not None and targets.ndim == 1 and not targets.is_floating_point()
    classes = int(targets.max()) + 1 if labels and targets is not None else 0
    told = comm.all_gather(torch.tensor([-1 if train.count is None else train.count, classes]))
    sizes, all_classes = told.view(comm.size, 2).T.tolist()
    facts: dict[str, Any] = {"samples": [None if size < 0 else size for size in sizes]}
    if min(all_classes) > 0:
        assert targets is not None
        counts = targets[targets >= 0].long().bincount(minlength=max(all_classes))
        facts["labels"] = comm.all_gather(counts).view(comm.size, -1).tolist()
    return facts


def _memory(name: str, split: Any) -> Memory:
    read = readable(split)
    read = read.mine if isinstance(read, Own) else read
    if not isinstance(read, Memory) or not read.pair[0].is_floating_point():
        raise TrainerError(f"{name} data: standardise needs inputs in memory, of floating point")
    return read
