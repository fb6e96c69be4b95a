"""Which samples a rank takes in a step: a pure function of (seed, epoch, position in the epoch).

An epoch is one permutation of the samples, cut into global batches; the last batch of an epoch may be
smaller. Nothing is repeated or dropped. A rank takes part `rank` of numpy.array_split(batch, size), which
may be empty. The samples of a step therefore do not depend on the number of ranks, and every rank knows how
many there are, and how much they count. In exact mode (exact.py) batches are split into more parts than there
are ranks, and a rank takes several in a row.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.errors import TrainerError


@dataclass(frozen=True)
class Batch:
    """One step's samples: `indices` are this rank's, `parts` the same by the part of the batch, in order.

    Counts are of what the task counts, samples or tokens: a mean loss is a sum divided by `global_count`.
    """

    epoch: int
    indices: Tensor
    parts: dict[int, Tensor]
    global_samples: int
    local_count: int
    global_count: int

    def without_mine(self) -> Batch:
        """The same step of a rank that could not read its samples."""
        none = self.indices[:0]
        return replace(self, indices=none, parts=dict.fromkeys(self.parts, none), local_count=0)


class Order(ABC):
    """Which samples each step takes, known without reading any."""

    samples: int  # of all ranks, in an epoch
    global_batch: int
    first: int = 0  # the number, over all ranks, of what this rank calls sample 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.samples // self.global_batch)

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """The samples of step `step`, counted from 0."""

    @abstractmethod
    def position(self, step: int) -> dict[str, Any]:
        """Where step `step`, counted from 0, begins: so many samples into an epoch of that order."""

    def check(self, position: dict[str, Any], step: int, of: str) -> None:
        """Raises TrainerError where `of`, a checkpoint, has another position of that step."""
        now = self.position(step)
        if position != now:
            raise TrainerError(
                f"{of}: this version of numpy or of the sampler takes the samples in another order: expected "
                f"{position}, got {now}"
            )


class Sampler(Order):
    """`counts`: how much each sample counts (see Task.counts); None for once each. A global batch of more
    samples than there are takes them all. `shards`: the parts of a batch, one for each rank if not given."""

    def __init__(
        self,
        count: int,
        global_batch: int,
        seed: int,
        rank: int = 0,
        size: int = 1,
        counts: Tensor | None = None,
        shards: int | None = None,
    ) -> None:
        if count < 1 or global_batch < 1:
            raise TrainerError(
                f"expected 1 sample or more and a global batch of 1 or more, got {count} and {global_batch}"
            )
        self.samples = count
        self._counts = None if counts is None else counts.numpy()
        self.global_batch = min(global_batch, count)
        self._seed = seed
        self.shards = size if shards is None else shards
        self._own = own_shards(self.shards, rank, size)
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self._order_sha256: str | None = None

    def batch(self, step: int) -> Batch:
        epoch, position = divmod(step, self.steps_per_epoch)
        samples = self._permutation(epoch)[position * self.global_batch :][: self.global_batch]
        split = np.array_split(samples, self.shards)
        parts = {shard: torch.from_numpy(split[shard]) for shard in self._own}
        mine = torch.cat(list(parts.values()))
        return Batch(epoch, mine, parts, len(samples), self._count(mine.numpy()), self._count(samples))

    def position(self, step: int) -> dict[str, Any]:
        epoch, position = divmod(step, self.steps_per_epoch)
        order = self._permutation(epoch)
        if self._order_sha256 is None:
            self._order_sha256 = hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()
        return {
            "epoch": epoch,
            "position": position * self.global_batch,
            "order_sha256": self._order_sha256,
        }

    def _count(self, samples: np.ndarray) -> int:
        return len(samples) if self._counts is None else int(self._counts[samples].sum())

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self.samples)
            self._epoch, self._order_sha256 = epoch, None
        return self._order


def own_shards(shards: int, rank: int, size: int) -> range:
    """The rank's share of so many logical shards, a multiple of the ranks: equally many, in a row."""
    count = shards // size
    return range(rank * count, (rank + 1) * count)
