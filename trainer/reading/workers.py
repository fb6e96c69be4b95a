"""torch's DataLoader, made fit for a rank: what it loads comes in order, and its end is this rank's to deal
with.

A worker that dies is noticed where a batch is waited for, within POLL_S, and not (as by DataLoader's own
signal handler) in the midst of whatever the training thread does then. A worker ends with its rank, also by
kill -9. Workers that are forked can do nothing with the engine or MPI of the rank (pycomm guards that); those
that are spawned, or come from a fork server, have neither.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from trainer.errors import TrainerError

POLL_S = 1.0
PATIENCE = (
    0.8  # of the deadline of collectives: this rank's message comes before that of those that wait for it
)
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Workers:
    """How many processes read for each rank, none for the rank itself; and how they start."""

    count: int = 0
    start: Literal["fork", "spawn", "forkserver"] = "fork"


class Loader(Iterator[Any]):
    """What `dataset` gives for each of `batches`, lists of keys; or, without these, all that it yields.

    Raises TrainerError where workers cannot be started, die, or say nothing for too long.
    """

    def __init__(
        self,
        dataset: Any,
        workers: Workers,
        batches: Iterable[list[Any]] | None = None,
    ) -> None:
        options: dict[str, Any] = {"batch_size": None} if batches is None else {"batch_sampler": batches}
        if workers.count:
            options |= {"multiprocessing_context": workers.start, "timeout": POLL_S, "worker_init_fn": _begin}
        loader = DataLoader(
            dataset,
            num_workers=workers.count,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # not the training's
            **options,
        )
        self._workers = workers
        with _own_signals():
            try:
                self._iterator: Any = iter(loader)
            except Exception as error:  # of pickle, of the operating system
                hint = "" if workers.start == "fork" else "; what `fork` starts need not be pickled"
                raise TrainerError(
                    f"{workers.count} workers cannot be started by {workers.start!r}: "
                    f"{type(error).__name__}: {error}{hint}"
                ) from error

    def __next__(self) -> Any:
        limit_s = PATIENCE * float(os.environ.get("PYCOMM_TIMEOUT_S", "300"))
        end = time.monotonic() + limit_s
        while True:
            try:
                return next(self._iterator)
            except (RuntimeError, OSError, EOFError) as error:
                # A batch that a worker has sent is still the worker's memory, and an OSError without it.
                said = str(error)
                if "timed out" not in said:
                    raise TrainerError(
                        f"a data worker has ended, killed, crashed, or out of memory or of /dev/shm: "
                        f"{said.partition(chr(10))[0] or type(error).__name__}"
                    ) from error
                if time.monotonic() > end:
                    raise TrainerError(
                        f"the data workers have brought no batch for {limit_s:.0f} s (PYCOMM_TIMEOUT_S)"
                    ) from error

    def close(self) -> None:
        """Ends the workers. What was read ahead is dropped."""
        self._iterator = iter(())


def _as_it_is(value: Any) -> Any:
    return value


def _begin(_: int) -> None:
    """In a worker."""
    for number in (signal.SIGINT, signal.SIGUSR1):  # for the rank, which ends its workers
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Undoes what DataLoader does to SIGCHLD; signals can be set in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)
