"""Memory that all ranks of a node have in common: what one writes, the others read where it lies.

It lies in a file without a name (memfd), which ends with the last process that maps it, however that ends.
Rank 0 makes it and the others open it through /proc, so ranks need the same user and process namespace.
"""

from __future__ import annotations

import mmap
import os
import secrets
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pycomm import Communicator
from trainer.errors import TrainerError
from trainer.files import on_every_rank

TOKEN_BYTES = 16


def check_shareable(comm: Communicator) -> None:
    """Raises TrainerError unless all ranks are on one node."""
    if comm.local_size != comm.size:
        raise TrainerError(
            f"sharing parameters: expected all {comm.size} ranks on one node, got {comm.local_size} here"
        )


def shared_zeros(comm: Communicator, count: int, dtype: torch.dtype) -> Tensor:
    """A one-dimensional tensor of zeros that is the same memory on all ranks. Collective, blocks.

    Raises CollectiveError where a rank cannot map rank 0's memory.
    """
    nbytes = count * dtype.itemsize
    descriptor = os.memfd_create("pycomm-parameters") if comm.rank == 0 else -1
    try:
        token = np.frombuffer(secrets.token_bytes(TOKEN_BYTES), np.uint8).copy()
        comm.broadcast(token, root=0)
        if comm.rank == 0:
            os.truncate(descriptor, nbytes + TOKEN_BYTES)
            os.pwrite(descriptor, token.tobytes(), nbytes)
        where = comm.broadcast(np.array([os.getpid(), descriptor]), root=0)
        mapped = on_every_rank(
            comm, lambda: _map(Path(f"/proc/{where[0]}/fd/{where[1]}"), nbytes, token.tobytes())
        )
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return torch.frombuffer(mapped, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)


def _map(path: Path, nbytes: int, token: bytes) -> mmap.mmap:
    try:
        with path.open("r+b") as file:
            mapped = mmap.mmap(file.fileno(), nbytes + TOKEN_BYTES)
    except (OSError, ValueError) as error:
        raise TrainerError(f"sharing parameters: cannot map rank 0's memory, {path}: {error}") from error
    if mapped[nbytes:] != token:  # a process namespace of its own has another process of that number
        raise TrainerError(f"sharing parameters: {path} is not rank 0's memory")
    return mapped
