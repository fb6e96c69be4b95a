"""Splits of which each rank has its own samples, which never leave it: nobody reads another's files.

Every step takes from each rank a share in proportion to what it has, so that an epoch has every sample once
and all ranks come to its end in the same step. Imagine each rank's samples spread evenly over the epoch: the
k-th of n lies at (k + 1/2) / n. The steps are cut from all of these in order, ranks in their order where two
coincide; a step so has exactly its global batch, but for the last one. The order depends on the number of
ranks, since the samples lie where they lie; the gradient of a step is the mean over its samples, wherever
these are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trainer.errors import TrainerError
from trainer.reading import Indexed, Pair, Readable, Share, Source
from trainer.reading.agreement import Agreement
from trainer.reading.stream import Stream
from trainer.sampler import Batch, Order

if TYPE_CHECKING:
    from trainer.data import Task


class LocalOrder(Order):
    """`sizes`: samples of each rank."""

    def __init__(self, sizes: Sequence[int], global_batch: int, seed: int, rank: int) -> None:
        self._sizes = list(sizes)
        self._seed = seed
        self._rank = rank
        self.samples = sum(sizes)
        self.global_batch = min(global_batch, self.samples)
        self.first = sum(sizes[:rank])
        self._places = places(sizes, rank)
        self._epoch = -1
        self._permutation = np.empty(0, np.int64)

    def batch(self, step: int) -> Batch:
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.global_batch
        stop = min(start + self.global_batch, self.samples)
        first, last = np.searchsorted(self._places, [start, stop])
        if epoch != self._epoch:
            drawn = np.random.default_rng([self._seed, epoch, self._rank])
            self._epoch, self._permutation = epoch, drawn.permutation(self._sizes[self._rank])
        mine = torch.from_numpy(self._permutation[first:last])
        return Batch(epoch, mine, {self._rank: mine}, stop - start, len(mine), stop - start)

    def position(self, step: int) -> dict[str, Any]:
        epoch, position = divmod(step, self.steps_per_epoch)
        drawn = np.random.default_rng([self._seed, epoch, 0]).permutation(self._sizes[0])
        return {
            "epoch": epoch,
            "position": position * self.global_batch,
            "samples_by_rank": self._sizes,
            "order_sha256": hashlib.sha256(drawn.astype("<i8").tobytes()).hexdigest(),  # rank 0's
        }

    def check(self, position: dict[str, Any], step: int, of: str) -> None:
        sizes = position.get("samples_by_rank", [])
        if sizes != self._sizes:
            raise TrainerError(
                f"{of}: with data_local each rank goes on in its own samples, so a run is resumed on as many "
                f"ranks with as many samples each: expected {sizes}, got {self._sizes}"
            )
        super().check(position, step, of)


def places(sizes: Sequence[int], rank: int) -> np.ndarray:
    """Where in an epoch of all ranks the rank's k-th sample comes, counted from 0: in integers, exact."""
    mine = sizes[rank]
    middle = 2 * np.arange(mine, dtype=np.int64) + 1  # (k + 1/2) / n is middle / (2 n)
    before = np.zeros(mine, np.int64)
    for other, count in enumerate(sizes):
        # Samples j of the other with (2j + 1) / count below middle / mine, or equal where it is an earlier
        # rank.
        scaled = middle * count - mine
        before += scaled // (2 * mine) + 1 if other < rank else -(-scaled // (2 * mine))
    return before


class Own(Readable):
    """What this rank has of a split, read as its kind is read by one rank alone."""

    own = True

    def __init__(self, mine: Readable) -> None:
        self.mine = mine
        self.count = mine.count

    def source(self, share: Share) -> Source:
        mine, agreement = self.mine, Agreement(share.comm, share.task)
        if isinstance(mine, Stream):
            return mine.source_of(share, 0, 1)
        assert isinstance(mine, Indexed)
        sizes = [int(row[0]) for row in agreement.told([mine.count])]
        order = LocalOrder(sizes, share.global_batch, share.seed, share.rank)
        return mine.source_in(order, share)

    def chunks(self, task: Task, part: int, parts: int, most: int) -> Iterator[Pair]:
        return self.mine.chunks(task, 0, 1, most)

    def identity(self) -> Iterator[Tensor]:
        return self.mine.identity()

    def first(self) -> Pair:
        return self.mine.first()
