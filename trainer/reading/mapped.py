"""Splits that are map-style torch Datasets: samples are read when they are needed, ahead of it by workers.

The order is the sampler's, a pure function of (seed, epoch, position): a run that is resumed reads none of
the samples before it, whatever the number of ranks or workers. What a sample draws at random is a function of
(seed, epoch, number of the sample).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer.errors import TrainerError
from trainer.reading import Indexed, Pair, Share, Source, chunk_of
from trainer.reading.agreement import Agreement, agreement_on
from trainer.reading.memory import part_of
from trainer.reading.samples import PROBE, Collate, Collated, Failure, Items, Key, no_rows
from trainer.reading.workers import Loader, Workers
from trainer.sampler import Batch, Order

if TYPE_CHECKING:
    from trainer.data import Task


class Mapped(Indexed):
    """`name`: of the split, for messages."""

    def __init__(
        self, dataset: Any, name: str, seed: int, workers: Workers, collate: Collate | None = None
    ) -> None:
        self.count = len(dataset)
        self._dataset = dataset
        self._name = name
        self._seed = seed
        self._workers = workers
        self._collate = collate
        self._first: Pair | None = None

    def source(self, share: Share) -> Source:
        return self.source_in(share.sampler(self.count), share)

    def source_in(self, order: Order, share: Share) -> Source:
        empty = no_rows(self.first())
        return MappedSource(self._items(order.first), order, self._workers, agreement_on(share), empty)

    def chunks(self, task: Task, part: int, parts: int, most: int) -> Iterator[Pair]:
        keys = [(PROBE, int(index)) for index in part_of(self.count, part, parts)]
        if not keys:
            return
        each = chunk_of(task, self.first()[1], most)
        lists = [[keys[start : start + each]] for start in range(0, len(keys), each)]
        workers = self._workers if len(lists) > 1 else Workers()  # for one, starting them takes longer
        loader = Loader(self._items(), workers, lists)
        try:
            for (batch,) in loader:
                yield good(batch)
        finally:
            loader.close()

    def identity(self) -> Iterator[Tensor]:
        """Its length, and three samples."""
        last = self.count - 1
        yield torch.tensor([last + 1])
        for index in sorted({0, last // 2, last}):
            yield from self._read(index)

    def first(self) -> Pair:
        if self._first is None:
            self._first = self._read(0)
        return self._first

    def _read(self, index: int) -> Pair:
        return good(self._items().__getitems__([[(PROBE, index)]])[0])

    def _items(self, first: int = 0) -> Items:
        return Items(self._dataset, self._name, self._seed, self._collate, first)


class MappedSource(Source):
    """`empty`: inputs and targets of no sample. `agreement`: where samples count differently."""

    def __init__(
        self,
        items: Items,
        order: Order,
        workers: Workers,
        agreement: Agreement | None,
        empty: Pair,
    ) -> None:
        self._items = items
        self._order = order
        self._workers = workers
        self._agreement = agreement
        self._empty = empty
        self._loader: Loader | None = None
        self._ahead: deque[Batch] = deque()  # those that the loader has been told to load
        self._loaded = Loaded([], [])
        self.global_batch, self.samples = order.global_batch, order.samples
        self.steps_per_epoch = order.steps_per_epoch

    def batch(self, step: int) -> Batch:
        try:
            if self._loader is None:
                self._loader = Loader(self._items, self._workers, self._keys(step))
            collated = next(self._loader)
            batch = self._ahead.popleft()
            pairs = [self._empty if pair is None else good(pair) for pair in collated]
        except TrainerError as error:
            self.trouble = error
            batch = self._order.batch(step).without_mine()
            pairs = [self._empty] * len(batch.parts)
        self._loaded = Loaded(list(batch.parts.values()), pairs)
        if self._agreement is None:
            return batch
        return self._agreement.counted(batch, *(targets for _, targets in pairs))

    def take(self, indices: Tensor) -> Pair:
        return self._loaded.take(indices)

    def position(self, step: int) -> dict[str, Any]:
        return self._order.position(step)

    def resume(self, position: dict[str, Any], step: int, of: str) -> None:
        self._order.check(position, step, of)

    def close(self) -> None:
        if self._loader is not None:
            self._loader.close()

    def _keys(self, start: int) -> Iterator[list[list[Key]]]:
        """Of the steps from `start` on, as the loader asks for them; of each part of the batch alone, for a
        collate that pads makes of a sample what depends on the others."""
        assert self.steps is not None
        for step in range(start, self.steps):
            batch = self._order.batch(step)
            self._ahead.append(batch)
            yield [[(batch.epoch, index) for index in part.tolist()] for part in batch.parts.values()]


class Loaded:
    """The parts of a batch that have been read, by the indices of their samples."""

    def __init__(self, parts: Sequence[Tensor], pairs: Sequence[Pair]) -> None:
        self._parts = parts
        self._pairs = pairs

    def take(self, indices: Tensor) -> Pair:
        """Of samples of one part."""
        for part, pair in zip(self._parts, self._pairs, strict=True):
            if indices.equal(part):
                return pair
        for part, (inputs, targets) in zip(self._parts, self._pairs, strict=True):
            places = {index: place for place, index in enumerate(part.tolist())}
            if places.keys() >= set(indices.tolist()):
                rows = torch.tensor([places[index] for index in indices.tolist()], dtype=torch.int64)
                return inputs[rows], targets[rows]
        raise AssertionError("samples of several parts of a batch, or of another one")


def good(batch: Collated) -> Pair:
    """Raises TrainerError for a Failure."""
    assert batch is not None
    if isinstance(batch, Failure):
        raise TrainerError(batch.said)
    return batch
