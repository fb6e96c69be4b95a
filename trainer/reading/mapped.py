"""Splits that are map-style torch Datasets: samples are read when they are needed, ahead of it by workers.

The order is the sampler's, a pure function of (seed, epoch, position): a run that is resumed reads none of
the samples before it, whatever the number of ranks or workers. What a sample draws at random is a function of
(seed, epoch, number of the sample).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer.errors import TrainerError
from trainer.reading import Indexed, Pair, Share, Source, chunk_of
from trainer.reading.agreement import Agreement, agreement_on
from trainer.reading.memory import part_of
from trainer.reading.samples import PROBE, Batching, Collate, Failure, Items, Key, no_rows
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
        self._batching = Batching(name, collate)
        self._first: Pair | None = None

    def source(self, share: Share) -> Source:
        return self.source_in(share.sampler(self.count), share)

    def source_in(self, order: Order, share: Share) -> Source:
        items = Items(self._dataset, self._name, self._seed, order.first)
        empty = no_rows(self.first())
        return MappedSource(items, self._batching, order, self._workers, agreement_on(share), empty)

    def chunks(self, task: Task, part: int, parts: int, most: int) -> Iterator[Pair]:
        keys = [(PROBE, int(index)) for index in part_of(self.count, part, parts)]
        if not keys:
            return
        each = chunk_of(task, self.first()[1], most)
        lists = [keys[start : start + each] for start in range(0, len(keys), each)]
        workers = self._workers if len(lists) > 1 else Workers()  # for one, starting them takes longer
        loader = Loader(self._items(), workers, lists, self._batching)
        try:
            for batch in loader:
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
        return good(self._batching(self._items().__getitems__([(PROBE, index)])))

    def _items(self) -> Items:
        return Items(self._dataset, self._name, self._seed)


class MappedSource(Source):
    """`empty`: inputs and targets of no sample. `agreement`: where samples count differently."""

    def __init__(
        self,
        items: Items,
        batching: Batching,
        order: Order,
        workers: Workers,
        agreement: Agreement | None,
        empty: Pair,
    ) -> None:
        self._items = items
        self._batching = batching
        self._order = order
        self._workers = workers
        self._agreement = agreement
        self._empty = empty
        self._loader: Loader | None = None
        self._ahead: deque[Batch] = deque()  # those that the loader has been told to load
        self._loaded = Loaded(torch.empty(0, dtype=torch.int64), empty)
        self.global_batch, self.samples = order.global_batch, order.samples
        self.steps_per_epoch = order.steps_per_epoch

    def batch(self, step: int) -> Batch:
        try:
            if self._loader is None:
                self._loader = Loader(self._items, self._workers, self._keys(step), self._batching)
            pair = next(self._loader)
            batch = self._ahead.popleft()
            pair = self._empty if pair is None else good(pair)
        except TrainerError as error:
            self.trouble = error
            batch, pair = self._order.batch(step).without_mine(), self._empty
        self._loaded = Loaded(batch.indices, pair)
        return batch if self._agreement is None else self._agreement.counted(batch, pair[1])

    def take(self, indices: Tensor) -> Pair:
        return self._loaded.take(indices)

    def position(self, step: int) -> dict[str, Any]:
        return self._order.position(step)

    def resume(self, position: dict[str, Any], step: int, of: str) -> None:
        self._order.check(position, step, of)

    def close(self) -> None:
        if self._loader is not None:
            self._loader.close()

    def _keys(self, start: int) -> Iterator[list[Key]]:
        """Of the steps from `start` on, as the loader asks for them."""
        assert self.steps is not None
        for step in range(start, self.steps):
            batch = self._order.batch(step)
            self._ahead.append(batch)
            yield [(batch.epoch, index) for index in batch.indices.tolist()]


class Loaded:
    """A batch that has been read, by the indices of its samples."""

    def __init__(self, indices: Tensor, pair: Pair) -> None:
        self._indices = indices
        self._pair = pair

    def take(self, indices: Tensor) -> Pair:
        if indices.equal(self._indices):
            return self._pair
        places = {index: place for place, index in enumerate(self._indices.tolist())}
        rows = torch.tensor([places[index] for index in indices.tolist()], dtype=torch.int64)
        return self._pair[0][rows], self._pair[1][rows]


def good(batch: Pair | Failure | None) -> Pair:
    """Raises TrainerError for a Failure."""
    assert batch is not None
    if isinstance(batch, Failure):
        raise TrainerError(batch.said)
    return batch
