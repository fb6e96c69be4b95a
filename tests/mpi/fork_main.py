"""Forked and spawned children of ranks, with an operation running: they can do nothing, end well, and the
ranks go on."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import pycomm


class Numbers(Dataset[int]):
    """Whose workers check what they may do: forked ones nothing; spawned ones have no communicator, and no
    MPI."""

    def __init__(self, comm: pycomm.Communicator | None) -> None:
        self.comm = comm

    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> int:
        if self.comm is not None:
            refused(self.comm)
        else:
            assert not pycomm.is_initialized() and not pycomm._core.mpi_info()["initialized"]
        return i


def refused(comm: pycomm.Communicator) -> None:
    for call in (comm.barrier, pycomm.init, lambda: comm.all_reduce(np.ones(3)), lambda: comm.split(0)):
        try:
            call()
        except pycomm.Aborted:
            continue
        raise AssertionError("a call went through in a forked child")


def main() -> None:
    torch.set_num_threads(1)
    comm = pycomm.init()
    work = None
    if comm.rank == 0:  # rank 1 joins when rank 0 is through with its children
        work = comm.all_reduce_async(np.ones(100_000))
        time.sleep(0.05)
        for ending in (lambda: sys.exit(0), lambda: os._exit(0)):
            pid = os.fork()
            if pid == 0:
                refused(comm)
                ending()
            assert os.waitpid(pid, 0)[1] == 0
        child = multiprocessing.get_context("fork").Process(target=refused, args=(comm,))
        child.start()
        child.join()
        assert child.exitcode == 0
        for method, dataset in (("fork", Numbers(comm)), ("spawn", Numbers(None))):
            loader = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context=method)
            assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        comm.send(np.zeros(1), 1)
        assert work.wait()[0] == 2
    else:
        comm.recv(np.empty(1), 0)
        comm.all_reduce(np.ones(100_000))
    comm.barrier()
    if comm.rank == 0:
        print("well", flush=True)


if __name__ == "__main__":
    main()
