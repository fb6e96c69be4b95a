"""Splits that are two tensors, whole on every rank: samples are named by their index, and cost nothing to
skip."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trainer.reading import Indexed, Pair, Readable, Share, Source, chunk_of
from trainer.reading.agreement import Agreement, agreement_on
from trainer.sampler import Batch, Order

if TYPE_CHECKING:
    from trainer.data import Split, Task


class Memory(Indexed):
    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.count = len(pair[0])

    def source(self, share: Share) -> Source:
        counts = share.task.counts(self.pair[1])
        return MemorySource(self.pair, share.sampler(len(counts), counts))

    def source_in(self, order: Order, share: Share) -> Source:
        return MemorySource(self.pair, order, agreement_on(share))

    def chunks(self, task: Task, part: int, parts: int, most: int) -> Iterator[Pair]:
        inputs, targets = self.pair
        mine = part_of(len(inputs), part, parts)
        if len(mine):
            for chunk in torch.split(mine, chunk_of(task, targets[mine], most)):
                yield inputs[chunk], targets[chunk]

    def identity(self) -> Iterator[Tensor]:
        yield from self.pair

    def first(self) -> Pair:
        inputs, targets = self.pair
        return inputs[:1], targets[:1]


class MemorySource(Source):
    """`agreement`: where nobody knows how much the other ranks' samples count."""

    def __init__(self, pair: Pair, order: Order, agreement: Agreement | None = None) -> None:
        self._pair = pair
        self._order = order
        self._agreement = agreement
        self.global_batch, self.samples = order.global_batch, order.samples
        self.steps_per_epoch = order.steps_per_epoch

    def batch(self, step: int) -> Batch:
        batch = self._order.batch(step)
        if self._agreement is None:
            return batch
        return self._agreement.counted(batch, self._pair[1][batch.indices])

    def take(self, indices: Tensor) -> Pair:
        inputs, targets = self._pair
        return inputs[indices], targets[indices]

    def position(self, step: int) -> dict[str, Any]:
        return self._order.position(step)

    def resume(self, position: dict[str, Any], step: int, of: str) -> None:
        self._order.check(position, step, of)


def readable(split: Split) -> Readable:
    """What a data set that has been loaded has: tensors, or what reads something else."""
    if isinstance(split, tuple):
        return Memory(split)
    assert isinstance(split, Readable)
    return split


def part_of(count: int, part: int, parts: int) -> Tensor:
    """The indices of that part's samples, as numpy.array_split(range(count), parts) has them."""
    return torch.from_numpy(np.array_split(np.arange(count), parts)[part])
