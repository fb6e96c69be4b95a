"""Which samples a rank takes in a step: a pure function of (seed, epoch, position in the epoch).

An epoch is one permutation of the samples, cut into global batches; the last batch of an epoch may be
smaller. Nothing is repeated or dropped. A rank takes part `rank` of numpy.array_split(batch, size), which
may be empty. The samples of a step therefore do not depend on the number of ranks, and every rank knows how
many there are, and how much they count. In exact mode (exact.py) batches are split into more parts than there
are ranks, and a rank takes several in a row.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

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


class Sampler:
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
        self._count = count
        self._counts = np.ones(count, np.int64) if counts is None else counts.numpy()
        self.global_batch = min(global_batch, count)
        self._seed = seed
        self.shards = size if shards is None else shards
        self._own = own_shards(self.shards, rank, size)
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self._order_sha256: str | None = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-self._count // self.global_batch)

    def batch(self, step: int) -> Batch:
        """The samples of step `step`, counted from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        samples = self._permutation(epoch)[position * self.global_batch :][: self.global_batch]
        split = np.array_split(samples, self.shards)
        parts = {shard: torch.from_numpy(split[shard]) for shard in self._own}
        mine = torch.cat(list(parts.values()))
        local_count, global_count = (int(self._counts[part].sum()) for part in (mine, samples))
        return Batch(epoch, mine, parts, len(samples), local_count, global_count)

    def position(self, step: int) -> dict[str, int | str]:
        """Where step `step`, counted from 0, begins: so many samples into an epoch of that order."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = self._permutation(epoch)
        if self._order_sha256 is None:
            self._order_sha256 = hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()
        return {
            "epoch": epoch,
            "position": position * self.global_batch,
            "order_sha256": self._order_sha256,
        }

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self._count)
            self._epoch, self._order_sha256 = epoch, None
        return self._order


def own_shards(shards: int, rank: int, size: int) -> range:
    """The rank's share of so many logical shards, a multiple of the ranks: equally many, in a row."""
    count = shards // size
    return range(rank * count, (rank + 1) * count)
