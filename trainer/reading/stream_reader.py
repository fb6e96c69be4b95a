"""Reading a stream: what a rank, or each of its workers, keeps of it, as the head of stream.py has it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from trainer.errors import described
from trainer.reading.randomness import Draws
from trainer.reading.samples import Batching, Failure


@dataclass(frozen=True)
class Cut:
    """What of a stream a rank takes for each step. `whole`: the global batch of a stream that all ranks read,
    of which this is part `rank` of `size`; None: `each` samples, of its own. `words`: for its random
    numbers."""

    rank: int
    size: int
    whole: int | None
    each: int
    words: tuple[int, ...]


class Samples:
    """A stream's samples, or those of one of its shards (which one, and of how many), drawn from generators
    of their own. An error is a Failure, and the last one."""

    def __init__(
        self, dataset: Any, name: str, epoch: int, draws: Draws, shard: tuple[int, int] | None
    ) -> None:
        self._dataset = dataset
        self._shard = shard
        self._name = name
        self._epoch = epoch
        self._draws = draws
        self._iterator: Iterator[Any] | None = None
        self._number = 0
        self._failed = False

    def take(self, most: int) -> list[Any]:
        """The next ones; fewer at the end of the stream."""
        taken: list[Any] = []
        if self._failed or not most:
            return taken
        with self._draws.drawing():
            try:
                if self._iterator is None:
                    self._iterator = self._begun()
                for sample in islice(self._iterator, most):
                    taken.append(sample)
            except Exception as error:
                self._failed = True
                number = self._number + len(taken)
                taken.append(Failure(f"{self._name} sample {number} of the stream: {described(error)}"))
        self._number += len(taken)
        return taken

    def _begun(self) -> Iterator[Any]:
        stream = self._dataset
        self._tell_epoch(stream)
        if self._shard is not None:
            stream = stream.shard(num_shards=self._shard[1], index=self._shard[0])
            self._tell_epoch(stream)
        return iter(stream)

    def _tell_epoch(self, stream: Any) -> None:
        if hasattr(stream, "set_epoch"):
            stream.set_epoch(self._epoch)


class Reader(IterableDataset[Any]):
    """This rank's batches of an epoch; in a worker, those that fall to it. `epoch` is set before each."""

    def __init__(self, dataset: Any, name: str, seed: int, batching: Batching, cut: Cut) -> None:
        self._dataset = dataset
        self._name = name
        self._seed = seed
        self._batching = batching
        self._cut = cut
        self.epoch = 0

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        cut = self._cut
        reader, readers = cut.rank * workers + worker, cut.size * workers
        split = hasattr(self._dataset, "shard")
        words = (self._seed, self.epoch, *cut.words, *([worker] if split else []))
        shard = (reader, readers) if split else None
        samples = Samples(self._dataset, self._name, self.epoch, Draws(*words), shard)
        first = 0
        for number in count():
            block = samples.take(cut.whole or cut.each)
            if not block:
                return
            if split or number % workers == worker:
                rows = np.arange(len(block))
                mine = np.array_split(rows, cut.size)[cut.rank] if cut.whole else rows
                numbered = [(first + int(row), block[row]) for row in mine]
                yield self._batching(numbered, *words, cut.rank, number)
            first += len(block)
