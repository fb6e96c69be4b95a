"""How a rank reads samples: the seams between a data set's splits and what trains on or evaluates them.

A split is in memory (memory.py), a map-style torch Dataset (mapped.py) or an IterableDataset (stream.py), the
same on all ranks, or each rank has its own (local.py). Each kind is a Readable, and training draws from the
Source that its Readable makes:

    batch = source.batch(step)                       # which samples of the step are this rank's
    inputs, targets = source.take(batch.indices)     # or part of them, pass by pass
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pycomm import Communicator
from trainer.errors import TrainerError
from trainer.sampler import Batch, Order, Sampler

if TYPE_CHECKING:
    from trainer.data import Task

Pair = tuple[Tensor, Tensor]  # inputs and targets, first dim samples


@dataclass(frozen=True)
class Share:
    """Whose share of which global batches a source gives: `rank` of `size`, which are those of `comm` but in
    a dry run."""

    comm: Communicator
    rank: int
    size: int
    global_batch: int
    seed: int
    task: Task
    shards: int | None = None  # of Sampler

    def sampler(self, count: int, counts: Tensor | None = None) -> Sampler:
        """Of so many samples, the same on all ranks."""
        return Sampler(count, self.global_batch, self.seed, self.rank, self.size, counts, self.shards)


class Source(ABC):
    """A rank's training samples, step by step.

    Calls come from the training thread, the same on all ranks: `batch(step)` for one step after another, and
    after each any number of `take`s. What cannot be read is not raised but kept as `trouble`, for all ranks
    to be told together; the rank then has no sample in that step.
    """

    global_batch: int
    steps_per_epoch: int | None  # None: nobody knows
    samples: int | None  # of all ranks in an epoch
    steps: int | None = None  # of the run, set before the first batch: nothing is read beyond
    trouble: TrainerError | None = None

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """The samples of step `step`, counted from 0. Blocks until they are there; may be collective."""

    @abstractmethod
    def take(self, indices: Tensor) -> Pair:
        """Inputs and targets of some of the samples of one of the last batch's `parts`, in that order."""

    @abstractmethod
    def position(self, step: int) -> dict[str, Any]:
        """Where step `step` begins, for a checkpoint after the step before it."""

    @abstractmethod
    def resume(self, position: dict[str, Any], step: int, of: str) -> None:
        """The next batch is that of `step`, whose position() was that; before the first batch. Raises
        TrainerError that says why this run cannot go on from there; `of`: what does it."""

    def close(self) -> None:  # noqa: B027
        """Ends what reads ahead. Does not communicate."""


class Readable(ABC):
    """A split, as it lies."""

    count: int | None  # samples that this rank can read; None: nobody knows
    own: bool = False  # other ranks have other samples

    @abstractmethod
    def source(self, share: Share) -> Source:
        """For training. Does not communicate, unless each rank has its own."""

    @abstractmethod
    def chunks(self, task: Task, part: int, parts: int, most: int) -> Iterator[Pair]:
        """Part `part` of `parts` for evaluation, one for each rank; at most so many samples or tokens at a
        time. In all parts together every sample comes once. Does not communicate."""

    @abstractmethod
    def identity(self) -> Iterator[Tensor]:
        """What a hash of the data is made of: all of it where that is at hand, else some samples."""

    @abstractmethod
    def first(self) -> Pair:
        """The first sample, as a batch of one."""

    def arranged(self, parts: Sequence[Tensor]) -> Tensor:
        """Rows for the samples of all ranks in the order of the split, from those in the order of
        chunks()."""
        return torch.cat(list(parts))


class Indexed(Readable):
    """Whose samples have numbers, so that any of them can be read first."""

    count: int

    @abstractmethod
    def source_in(self, order: Order, share: Share) -> Source:
        """In that order, whose indices are this rank's."""


def chunk_of(task: Task, targets: Tensor, most: int) -> int:
    """How many samples like these have at most so many tokens; at least one."""
    return max(1, most // max(1, int(task.counts(targets).max())))
