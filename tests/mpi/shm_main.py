"""Shared memory between processes as a program uses it; every rank checks, and the exit status tells."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np

import pycomm

COUNT = 50_003


def memories(comm: pycomm.Communicator, count: int) -> dict[str, Any]:
    """Arrays of float32 wherever a user may have them."""
    shared, plain = comm.empty(count + 1), np.empty(count + 1, np.float32)
    arrays = {
        "shared": shared[:-1],
        "plain": plain[:-1],
        "shared and shifted": shared[1:],
        "plain and shifted": plain[1:],
    }
    if comm.size == 2:  # importing torch on more ranks than cores takes long
        import torch

        arrays["a shared tensor"] = comm.empty(count, torch.float32)
    return arrays


def any_mix_of_memory(comm: pycomm.Communicator) -> None:
    mine = memories(comm, COUNT)
    kinds = list(mine)
    for shift in range(len(kinds)):  # neighbours differ
        x = mine[kinds[(comm.rank + shift) % len(kinds)]]
        x[:] = comm.rank + 1
        comm.all_reduce(x, algorithm="mapped")
        assert (np.asarray(x) == comm.size * (comm.size + 1) / 2).all(), kinds[shift]
        x[:] = comm.rank
        comm.broadcast(x, root=comm.size - 1)
        assert (np.asarray(x) == comm.size - 1).all(), kinds[shift]
        parts = memories(comm, 7 * comm.size)[kinds[(comm.rank * 2 + shift) % len(kinds)]]
        comm.all_gather(np.full(7, comm.rank, np.float32), out=parts)
        assert (np.asarray(parts) == np.repeat(np.arange(comm.size), 7)).all(), kinds[shift]


def groups_within_the_world(comm: pycomm.Communicator) -> None:
    half = comm.split(comm.rank % 2)
    assert half is not None and half.transport == ("shm" if half.size > 1 else "none")
    x = half.empty(COUNT, np.int64)
    x[:] = comm.rank
    half.all_reduce(x)
    assert (x == sum(range(comm.rank % 2, comm.size, 2))).all()


def a_full_heap_says_how_to_enlarge_it(comm: pycomm.Communicator) -> None:
    try:
        comm.empty(1 << 60, np.uint8)
    except pycomm.TransportError as error:
        assert "PYCOMM_HEAP_MB" in str(error), error
    else:
        raise AssertionError("an exbibyte fitted")


def memory_is_given_back(comm: pycomm.Communicator) -> None:
    address = None
    for _ in range(20):  # more than the heap holds at once
        x = comm.empty(20 << 20, np.uint8)
        x[:] = 1
        assert address in (None, x.ctypes.data)
        address = x.ctypes.data
        del x
        gc.collect()


def left_open() -> list[str]:
    links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [link for link in links if "memfd:pycomm" in link]


def main() -> None:
    os.environ["PYCOMM_HEAP_MB"] = "64"
    before = set(os.listdir("/dev/shm"))
    comm = pycomm.init()
    assert comm.transport == "shm"
    for check in (
        any_mix_of_memory,
        groups_within_the_world,
        a_full_heap_says_how_to_enlarge_it,
        memory_is_given_back,
    ):
        check(comm)
        comm.barrier()
    kept = comm.empty(5)
    kept[:] = 5
    rank, made = comm.rank, set(os.listdir("/dev/shm")) - before
    assert not [name for name in made if "pycomm" in name], made
    pycomm.shutdown()
    assert left_open() == []
    assert (kept == 5).all()  # memory outlives the world
    del kept
    gc.collect()
    assert "memfd:pycomm" not in Path("/proc/self/maps").read_text()
    if rank == 0:
        print("well")


if __name__ == "__main__":
    main()
