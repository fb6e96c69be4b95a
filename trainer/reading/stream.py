"""Splits that are IterableDatasets: samples come one after another, and only the last one tells how many.

How ranks share a stream:
- It yields the same on every rank: every rank reads all of it, the global batch of a step is the next samples
  of it, and a rank keeps its part of them. So is every worker's: worker w of K cuts every K-th batch. Steps
  depend on neither the number of ranks nor of workers.
- It has a method `shard(num_shards, index)`, which returns the index-th of `num_shards` streams that have
  every sample once between them: worker w of K on rank r of N reads shard (r K + w, N K) and nothing else.
- With data_local it is the rank's own.
In the last two a rank takes its part of a global batch from its own readers, in turns, while they last.

All ranks learn in each step how many samples it has, by one small all-gather. An epoch ends when no rank has
one left; a rank whose share ends earlier takes part without samples. A run is resumed by reading the epoch
again up to where it was.

A stream draws its random numbers from generators that are seeded at the beginning of an epoch, by (seed,
epoch) where all ranks read it, else by (seed, epoch, reader) too; `set_epoch(epoch)` is called then if there
is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trainer.errors import CollectiveError, TrainerError
from trainer.reading import Pair, Readable, Share, Source, chunk_of
from trainer.reading.agreement import Agreement
from trainer.reading.mapped import Loaded, good
from trainer.reading.randomness import Draws
from trainer.reading.samples import PROBE, Batching, Collate, no_rows
from trainer.reading.stream_reader import Cut, Reader, Samples
from trainer.reading.workers import Loader, Workers
from trainer.sampler import Batch

if TYPE_CHECKING:
    from trainer.data import Task


class Stream(Readable):
    """`name`: of the split, for messages."""

    count = None

    def __init__(
        self, dataset: Any, name: str, seed: int, workers: Workers, collate: Collate | None = None
    ) -> None:
        self._dataset = dataset
        self._name = name
        self._seed = seed
        self._workers = workers
        self._batching = Batching(name, collate)
        self._sharded = hasattr(dataset, "shard")
        self._first: Pair | None = None

    def source(self, share: Share) -> Source:
        return self.source_of(share, share.rank, share.size)

    def source_of(self, share: Share, rank: int, size: int) -> Source:
        """Of a stream that `size` ranks read."""
        sizes = [len(part) for part in np.array_split(np.empty(share.global_batch), share.size)]
        whole = None if self._sharded or size < share.size else share.global_batch
        if not whole and not min(sizes):
            raise CollectiveError(
                f"global batch {share.global_batch} leaves some of {share.size} ranks without samples, and "
                "each has a stream of its own to read: expected one for each rank at least"
            )
        words = () if whole else (share.rank,)
        cut = Cut(rank, size, whole, sizes[share.rank], words)
        reader = Reader(self._dataset, self._name, self._seed, self._batching, cut)
        readers = None if whole else share.size * max(1, self._workers.count)
        empty = no_rows(self.first())
        return StreamSource(reader, self._workers, Agreement(share.comm, share.task), share, readers, empty)

    def chunks(self, task: Task, part: int, parts: int, most: int) -> Iterator[Pair]:
        each = chunk_of(task, self.first()[1], most)
        samples = self._samples(part, parts)
        first, step = (0, 1) if self._sharded else (part, parts)
        for before in count(0, each * step):
            block = list(enumerate(samples.take(each * step), before))[first::step]
            if not block:
                return
            yield good(self._batching(block, self._seed, PROBE, part, before))

    def identity(self) -> Iterator[Tensor]:
        """Its first sample."""
        yield from self.first()

    def first(self) -> Pair:
        if self._first is None:
            if isinstance(self._dataset, Iterator):
                raise TrainerError(
                    f"{self._name} data: expected a stream that each epoch can begin anew, got one that is "
                    "its own iterator: let __iter__ return a new one"
                )
            block = self._samples(0, 1).take(1)
            if not block:
                raise TrainerError(f"{self._name} data: expected a stream of samples, got one that is empty")
            self._first = good(self._batching([(0, block[0])], self._seed, PROBE))
        return self._first

    def _samples(self, part: int, parts: int) -> Samples:
        """For other ends than training."""
        shard = (part, parts) if self._sharded else None
        return Samples(self._dataset, self._name, 0, Draws(self._seed, PROBE), shard)

    def arranged(self, parts: Sequence[Tensor]) -> Tensor:
        """A stream that all ranks read was dealt sample by sample."""
        if self._sharded:
            return super().arranged(parts)
        rows = parts[0].new_empty((sum(map(len, parts)), *parts[0].shape[1:]))
        for rank, part in enumerate(parts):
            rows[rank :: len(parts)] = part
        return rows


class StreamSource(Source):
    """`readers`: how many have shards of their own; None where every rank reads the whole stream."""

    steps_per_epoch = None
    samples = None

    def __init__(
        self,
        reader: Reader,
        workers: Workers,
        agreement: Agreement,
        share: Share,
        readers: int | None,
        empty: Pair,
    ) -> None:
        self.global_batch = share.global_batch
        self._rank = share.rank
        self._reader = reader
        self._workers = workers
        self._agreement = agreement
        self._readers = readers
        self._empty = empty
        self._loader: Loader | None = None
        self._ended = False  # this rank's share of the epoch
        self._epoch = 0
        self._batches = 0  # steps done in the epoch
        self._skip = 0  # batches to read before the next one
        self._loaded = Loaded([], [])

    def batch(self, step: int) -> Batch:
        while True:
            pair = self._next()
            pair = self._empty if pair is None else pair
            indices = torch.arange(len(pair[0]))
            self._loaded = Loaded([indices], [pair])
            mine = len(indices), self._agreement.count(pair[1])
            told = self._agreement.told([*mine, self.trouble is not None])
            samples, total, troubled = told.sum(axis=0).tolist()
            if self._readers is None and not troubled:
                self._check_parts(told[:, 0].tolist())
            if troubled or samples:
                self._batches += 1
                return Batch(self._epoch, indices, {self._rank: indices}, samples, mine[1], max(1, total))
            if not self._batches:
                raise CollectiveError(
                    f"epoch {self._epoch} of the training stream has no sample on any rank: each call of "
                    "__iter__ has to begin anew"
                )
            self._begin(self._epoch + 1)

    def _check_parts(self, got: list[int]) -> None:
        """Where all ranks read the same, they have the parts of one batch."""
        expected = [len(part) for part in np.array_split(np.empty(sum(got)), len(got))]
        if got != expected:
            raise CollectiveError(
                f"the training stream is not the same on all ranks: expected parts of {expected} samples in "
                f"batch {self._batches} of epoch {self._epoch}, got {got}; a stream with a method "
                "shard(num_shards, index), or data_local, is each rank's own"
            )

    def take(self, indices: Tensor) -> Pair:
        return self._loaded.take(indices)

    def position(self, step: int) -> dict[str, Any]:
        return {"epoch": self._epoch, "batches": self._batches, "readers": self._readers}

    def resume(self, position: dict[str, Any], step: int, of: str) -> None:
        if position.get("readers", -1) != self._readers:
            raise TrainerError(
                f"{of}: the stream was read in {position.get('readers', 'no')} shards, one for each rank and "
                f"worker, and is now in {self._readers}: resume with as many ranks and workers"
            )
        self._begin(position["epoch"])
        self._batches = position["batches"]
        self._skip = position["batches"]

    def close(self) -> None:
        if self._loader is not None:
            self._loader.close()

    def _begin(self, epoch: int) -> None:
        self.close()
        self._loader, self._ended = None, False
        self._epoch, self._batches = epoch, 0

    def _next(self) -> Pair | None:
        """None at the end, where this rank has no sample of the batch, and after trouble."""
        if self._ended or self.trouble is not None:
            return None
        try:
            if self._loader is None:
                self._reader.epoch = self._epoch
                self._loader = Loader(self._reader, self._workers)
            for _ in range(self._skip):
                next(self._loader)
            self._skip = 0
            pair = next(self._loader)
            return None if pair is None else good(pair)
        except StopIteration:
            self._ended, self._skip = True, 0
        except TrainerError as error:
            self.trouble = error
        return None
