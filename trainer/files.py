"""Files that a run leaves behind: whole or absent, and a failure to write one is every rank's failure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pycomm import Communicator
from trainer.errors import CollectiveError, TrainerError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it, an operating system's error is a TrainerError that names `path`."""
    try:
        yield
    except OSError as error:
        raise TrainerError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Within it, write the file that it gives; afterwards that is on the disk, and has replaced `path`.

    After an exception `path` is as before. Raises TrainerError if there is no room or no permission.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            _to_disk(partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _to_disk(path.parent)  # the new name


def on_rank_0(comm: Communicator, action: Callable[[], object]) -> None:
    """Runs `action` on rank 0; blocks everywhere until it is done. Collective.

    A TrainerError there is raised on every rank, as a CollectiveError with its message.
    """
    message = b""
    if comm.rank == 0:
        try:
            action()
        except TrainerError as error:
            message = f"rank 0: {error}".encode()
    length = comm.broadcast(np.array([len(message)]))
    if length[0]:
        text = np.zeros(length[0], np.uint8)
        text[: len(message)] = np.frombuffer(message, np.uint8)
        raise CollectiveError(comm.broadcast(text).tobytes().decode())


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
