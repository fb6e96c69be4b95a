"""Ranks whose data end at different times, in a loop of one's own: those that are done take part without a
batch until all are. (torch's `Join` does it for DistributedDataParallel, by a second set of collectives.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pycomm import Communicator, Work
from trainer.errors import TrainerError

B = TypeVar("B")


def samples(batch: Any) -> int:
    """How many samples a batch has: the length of its first part, if it is a tuple or list, else its own."""
    return len(batch[0]) if isinstance(batch, tuple | list) else len(batch)


def uneven(
    batches: Iterable[B], comm: Communicator, count: Callable[[B], int] = samples
) -> Iterator[tuple[B | None, int]]:
    """This rank's batches, each with what those of all ranks count together in that step; then None in the
    place of a batch, until no rank has one. All ranks get equally many steps.

        with DataParallel(model, comm, optimizer, loss_reduction="sum") as parallel:
            for batch, global_count in uneven(loader, comm):
                parallel.global_count = global_count
                optimizer.zero_grad()
                if batch is not None:
                    summed_loss(model(batch[0]), batch[1]).backward()
                optimizer.step()    # zeros from those without a batch

    Each step is then that of one process with all its batches, the later and smaller ones too. Collective:
    one all_reduce of two numbers per step, which travels while the step before it computes, so a batch is
    fetched one step ahead. All ranks leave the loop in the same step. Steps whose batches are all empty are
    left out.

    Args:
        count: what a mean loss divides by, samples or tokens; 0 or more
    """
    coming = iter(batches)

    def announced() -> tuple[B | None, Work[npt.NDArray[np.int64]]]:
        """The next batch, and on its way how many ranks have one and what these count."""
        batch = next(coming, None)
        local = 0 if batch is None else count(batch)
        if local < 0:
            raise TrainerError(f"count: expected 0 or more, got {local}")
        return batch, comm.all_reduce_async(np.array([batch is not None, local], np.int64))

    batch, told = announced()
    while True:
        having, total = told.wait().tolist()
        if not having:
            return
        now = batch
        batch, told = announced()
        if total:
            yield now, total
