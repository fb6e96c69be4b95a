"""What a step counts over all ranks, where a rank cannot know that alone: one small all-gather per step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pycomm import Communicator
from trainer.sampler import Batch

if TYPE_CHECKING:
    from trainer.data import Task
    from trainer.reading import Share


class Agreement:
    def __init__(self, comm: Communicator, task: Task) -> None:
        self._comm = comm
        self._task = task

    def told(self, numbers: Sequence[int]) -> np.ndarray:
        """Every rank's numbers, a row for each rank. Collective, blocks."""
        told = self._comm.all_gather(np.array(numbers, np.int64))
        return np.asarray(told).reshape(self._comm.size, -1)

    def count(self, targets: Tensor | None) -> int:
        """How much this rank's samples count; None: it has none."""
        return 0 if targets is None or not len(targets) else int(self._task.counts(targets).sum())

    def counted(self, batch: Batch, *targets: Tensor) -> Batch:
        """The batch, of which this rank has these, with its counts. Collective, blocks."""
        mine = sum(map(self.count, targets))
        total = int(self.told([mine]).sum())
        return replace(batch, local_count=mine, global_count=max(1, total))


def agreement_on(share: Share) -> Agreement | None:
    """For samples that count differently, of which each rank knows its own."""
    from trainer.data import one_each

    return None if share.task.counts is one_each else Agreement(share.comm, share.task)
