"""Files that a run leaves behind: whole or absent, and a failure to write one is every rank's failure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from pycomm import Communicator
from trainer.errors import CollectiveError, TrainerError

T = TypeVar("T")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it, an operating system's error is a TrainerError that names `path`."""
    try:
        yield
    except OSError as error:
        raise TrainerError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """The same for a file that is read."""
    try:
        yield
    except OSError as error:
        raise TrainerError(f"cannot read {path}: {error.strerror or error}") from error


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
            to_disk(partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        to_disk(path.parent)  # the new name


def on_every_rank(comm: Communicator, action: Callable[[], T]) -> T:
    """Runs `action` on every rank and returns its result when it is done on all. Blocks, collective.

    A TrainerError on some is raised on all, as a CollectiveError with the message of the first such rank.
    """
    failure: TrainerError | None = None
    try:
        result = action()
    except CollectiveError:
        raise  # every rank is here
    except TrainerError as error:
        failure = error
    message = first_message(comm, failure)
    if message:
        raise CollectiveError(message) from failure
    return result


def on_rank_0(comm: Communicator, action: Callable[[], object]) -> None:
    """The same, with an `action` that rank 0 alone has to do."""
    on_every_rank(comm, action if comm.rank == 0 else lambda: None)


def first_message(comm: Communicator, failure: TrainerError | None) -> str:
    """What failed on the first rank where something did, with that rank unless all failed; "" if nothing did.

    Collective, blocks.
    """
    message = b"" if failure is None else (str(failure) or repr(failure)).encode()
    lengths = comm.all_gather(np.array([len(message)]))
    if not lengths.any():
        return ""
    first = int(lengths.nonzero()[0][0])
    text = np.zeros(lengths[first], np.uint8)
    if comm.rank == first:
        text[:] = np.frombuffer(message, np.uint8)
    said = comm.broadcast(text, root=first).tobytes().decode()
    return said if lengths.all() else f"rank {first}: {said}"


def to_disk(path: Path) -> None:
    """Blocks until the file's content, or the folder's names, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
