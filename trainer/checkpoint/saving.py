"""When checkpoints are written, and how little a step waits for it.

A save copies this rank's slices and goes on; a thread writes, syncs and hashes them meanwhile. That this
rank's file is on the disk travels with the loss of a later step; the step in which all ranks say so gathers
what they wrote on rank 0, whose thread makes the folder a checkpoint and then removes old ones. The next
save, and the end of the run, wait for that.

What cannot be written ends the run on all ranks, as a row of the metrics does: hours of training that nothing
keeps are worse than an early end. The last checkpoint stays.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from pycomm import Communicator
from trainer.checkpoint.slices import Slice
from trainer.checkpoint.stored import (
    FOLDER,
    PARTIAL,
    Record,
    fingerprint,
    folder_of,
    publish,
    saved,
    write_part,
)
from trainer.errors import CollectiveError, StoppedError, TrainerError
from trainer.files import first_message, on_rank_0, to_disk, writing
from trainer.weights import BEST


@dataclass
class _Pending:
    """A checkpoint that is not there yet."""

    step: int
    facts: Record
    written: Future[Record]
    published: Future[None] | None = None  # on rank 0
    gathered: bool = False

    def failure(self) -> TrainerError | None:
        """Of what has ended. What is no TrainerError is raised."""
        for future in (self.written, self.published):
            if future is not None and future.done():
                error = future.exception()
                if isinstance(error, TrainerError):
                    return error
                if error is not None:
                    raise error
        return None


class Saver:
    """Used with `with` around the training loop. Without `every` it does nothing."""

    def __init__(
        self, out: Path, comm: Communicator, every: int, keep: int, sync_metrics: Callable[[], None]
    ) -> None:
        """Saves after every so many steps, and keeps the `keep` newest. `sync_metrics` is called on rank 0,
        in a thread, before a checkpoint is there: the rows up to its step are then on the disk too."""
        self._out = out
        self._folder = out / FOLDER
        self._comm = comm
        self._every = every
        self._keep = keep
        self._sync_metrics = sync_metrics
        self._pending: _Pending | None = None
        self._buffers: list[Tensor] = []
        self._worker = ThreadPoolExecutor(1, f"checkpoints of rank {comm.rank}")

    def due(self, step: int, *, last: bool) -> bool:
        return self._every > 0 and (last or step % self._every == 0)

    @property
    def trouble(self) -> TrainerError | None:
        """What this rank could not write."""
        return self._pending.failure() if self._pending else None

    @property
    def written(self) -> bool:
        """This rank's part of the last save is on the disk, and nobody but this rank knows."""
        pending = self._pending
        return pending is not None and not pending.gathered and pending.written.done()

    def save(self, step: int, slices: Iterable[Slice], facts: Record) -> None:
        """Copies the slices. `facts`: what the index says besides. Collective; waits for the save before.

        Raises StoppedError, on every rank, if that one failed.
        """
        self.finish(step)
        partial = self._partial(step)
        try:
            on_rank_0(self._comm, lambda: self._begin(partial))
        except CollectiveError as error:
            raise StoppedError(str(error), step) from error
        copies = self._copies(slices)
        number = self._comm.rank
        written = self._worker.submit(write_part, partial, number, copies)
        self._pending = _Pending(step, {"step": step, **facts}, written)

    def all_written(self) -> None:
        """To be called by all ranks in the step in which they learn that all have `written`. Collective."""
        pending = self._pending
        assert pending is not None
        records = _gather(pending.written.result(), self._comm)
        pending.gathered = True
        if self._comm.rank == 0:
            pending.published = self._worker.submit(self._publish, pending, records)

    def finish(self, step: int) -> None:
        """Blocks until the last save is a checkpoint. Collective, `step` is the one that was done last.

        Raises StoppedError, on every rank, if it cannot become one; nothing is left of it then.
        """
        pending = self._pending
        if pending is None:
            return
        message = self._outcome()
        if not message and not pending.gathered:
            self.all_written()
            message = self._outcome()
        self._pending = None
        if message:
            if self._comm.rank == 0:
                shutil.rmtree(self._partial(pending.step), ignore_errors=True)
            raise StoppedError(message, step)

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, CollectiveError) and self._every:  # all ranks are here
                self._settle(error)
        finally:
            self._worker.shutdown(wait=error is None, cancel_futures=True)

    def _settle(self, error: CollectiveError) -> None:
        """What is being saved is as good as it was before the error, which may be about just that. The error
        then says what the last checkpoint is."""
        said = [str(error)]
        try:
            self.finish(0)
        except StoppedError as other:
            said += [str(other)] * (str(other) not in said[0])
        kept = list(saved(self._folder).values())
        said.append(f"the last checkpoint is {kept[-1]}" if kept else "there is no checkpoint")
        text = "; ".join(said)
        if isinstance(error, StoppedError):
            raise type(error)(text, error.step) from error
        raise CollectiveError(text) from error

    def _outcome(self) -> str:
        """What failed; "" if nothing did. Blocks until what was begun has ended, on all ranks."""
        assert self._pending is not None
        futures = [future for future in (self._pending.written, self._pending.published) if future]
        for future in futures:
            future.exception()
        return first_message(self._comm, self._pending.failure())

    def _partial(self, step: int) -> Path:
        folder = folder_of(self._folder, step)
        return folder.with_name(folder.name + PARTIAL)

    def _begin(self, partial: Path) -> None:
        """Rank 0's: an empty folder, and in it the best weights, before better ones replace them."""
        with writing(partial):
            if not self._folder.exists():
                self._folder.mkdir(parents=True)
                to_disk(self._out)
            partial.mkdir()
            best = self._out / BEST
            if best.exists():
                try:
                    os.link(best, partial / BEST)
                except OSError:  # a file system without links
                    shutil.copyfile(best, partial / BEST)
                    to_disk(partial / BEST)

    def _copies(self, slices: Iterable[Slice]) -> list[Slice]:
        """Into the buffers of the save before where they fit, for touching new memory costs more."""
        copies = []
        for index, part in enumerate(slices):
            buffer = self._buffers[index] if index < len(self._buffers) else None
            if buffer is None or buffer.dtype != part.data.dtype or len(buffer) != len(part.data):
                buffer = torch.empty_like(part.data)
            copies.append(replace(part, data=buffer.copy_(part.data)))
        self._buffers = [part.data for part in copies]
        return copies

    def _publish(self, pending: _Pending, records: list[Record]) -> None:
        partial = self._partial(pending.step)
        if (partial / BEST).exists():
            records = [*records, {"file": BEST, "slices": [], **fingerprint(partial / BEST)}]
        self._sync_metrics()
        publish(folder_of(self._folder, pending.step), pending.facts, records)
        _prune(self._folder, self._keep)


def tidy(folder: Path, keep: int) -> None:
    """Removes what a run that was killed has left there. Nobody may be saving. Raises TrainerError."""
    for path in folder.glob(f"*{PARTIAL}"):
        with writing(path):
            shutil.rmtree(path)
    _prune(folder, keep)


def _prune(folder: Path, keep: int) -> None:
    """An old checkpoint, too, is there as a whole or not at all."""
    for old in list(saved(folder).values())[:-keep]:
        with writing(old):
            shutil.rmtree(old.rename(old.with_name(old.name + PARTIAL)))


def _gather(record: Record, comm: Communicator) -> list[Record]:
    """All ranks' on rank 0, in their order; nothing elsewhere. Collective, blocks."""
    mine = np.frombuffer(json.dumps(record).encode(), np.uint8)
    counts = comm.all_gather(np.array([len(mine)])).tolist()
    together = comm.gather(mine, root=0, counts=counts)
    if together is None:
        return []
    return [json.loads(part.tobytes()) for part in np.split(together, np.cumsum(counts)[:-1])]
