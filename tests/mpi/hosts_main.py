"""What ranks on several hosts do, two on each; ends with exit status 0."""

from __future__ import annotations

import socket
import sys
import time
from typing import Any

import numpy as np

import pycomm
from tests.conformance.cases import Scope, cases
from tests.conformance.oracle import Oracle
from tests.conformance.runner import judge, run_cases
from tests.conformance.scopes import OWN_BYTES, registry

SAMPLE = 12  # one in so many
SIZES = (0, 5000, 60_001, 1_000_003)  # around the eager limits and the segments of a network


def neighbours_share_memory_and_hosts_do_not(comm: pycomm.Communicator) -> None:
    hosts = comm.mailbox(1)
    for peer in range(comm.size):
        hosts.send(peer, socket.gethostname())
    names = [hosts.recv(peer).content for peer in range(comm.size)]
    assert names == ["h0", "h0", "h1", "h1"], names
    for peer, name in enumerate(names):
        near = "none" if peer == comm.rank else "shm" if name == names[comm.rank] else "mpi"
        assert comm.transport_to(peer) == near, (comm.rank, peer, comm.transport_to(peer))
    assert (comm.local_rank, comm.local_size, comm.transport) == (comm.rank % 2, 2, "mpi+shm")
    assert comm.nodes == [[0, 1], [2, 3]]


def a_sample_of_conformance(comm: pycomm.Communicator) -> None:
    from mpi4py import MPI  # after pycomm.init() has started it

    made = cases(registry(), comm.size, "mpi", Scope("algorithms", OWN_BYTES))[::SAMPLE]
    reports = MPI.COMM_WORLD.gather(run_cases(comm, made, Oracle()))
    assert len(made) > 50
    if comm.rank == 0:
        faults = judge(made, reports or [])
        assert not faults, faults


def large_vectors(comm: pycomm.Communicator) -> None:
    for algorithm in ("ring", "direct", "hierarchical", None):
        for codec in ("none", "fp16"):
            x = np.arange(1_000_003, dtype=np.float32) % 97 + comm.rank
            total = comm.all_reduce(x, algorithm=algorithm, codec=codec)
            assert np.array_equal(total, 4 * (np.arange(1_000_003) % 97) + 6), (algorithm, codec)


def bytes_of(size: int, seed: int) -> np.ndarray[Any, Any]:
    return (np.arange(size, dtype=np.uint32) * 7 + seed).astype(np.uint8)


def everyone_writes_to_everyone(comm: pycomm.Communicator) -> None:
    box = comm.mailbox(7)
    works = [box.send_async(peer, bytes_of(size, comm.rank)) for size in SIZES for peer in range(comm.size)]
    due = [list(SIZES) for _ in range(comm.size)]
    for _ in works:
        message = box.recv(timeout=30)
        assert np.array_equal(message.content, bytes_of(due[message.source].pop(0), message.source))
    for work in works:
        work.wait()


def a_late_receiver_is_waited_for(comm: pycomm.Communicator) -> None:
    # Segments that MPI calls sent at once: still the sender must not run ahead of its receiver.
    x = np.full(3_000_000, comm.rank, np.float32)
    box = comm.mailbox(2)
    if comm.rank == 3:
        time.sleep(0.3)
        box.send(0, time.monotonic())
        assert (comm.recv(np.empty_like(x), 0) == 0).all()
    elif comm.rank == 0:
        comm.send(x, 3)
        sent = time.monotonic()  # hosts share the clock
        assert sent > box.recv(3).content


def groups_within_and_across_hosts(comm: pycomm.Communicator) -> None:
    near = comm.split(comm.rank // 2)
    far = comm.split(comm.rank % 2)
    assert near is not None and far is not None
    assert (near.transport, far.transport) == ("shm", "mpi")
    for group, total in ((near, 1 + 4 * (comm.rank // 2)), (far, 2 + 2 * (comm.rank % 2))):
        assert (group.all_reduce(np.full(100_000, comm.rank)) == total).all()


def training_is_that_of_one_process(comm: pycomm.Communicator) -> None:
    import torch

    from tests.trainer.one_process import COUNT, batch, small_model, summed_loss
    from trainer import DataParallel

    def train(model: torch.nn.Module, within: slice) -> list[Any]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        parallel = DataParallel(model, comm, optimizer, loss_reduction="sum", global_count=COUNT)
        with parallel:
            for step in range(2):
                optimizer.zero_grad()
                summed_loss(model, *(part[within] for part in batch(step))).backward()
                optimizer.step()
        return [parameter.detach().clone() for parameter in model.parameters()]

    single = small_model()
    optimizer = torch.optim.SGD(single.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        (summed_loss(single, *batch(step)) / COUNT).backward()
        optimizer.step()
    share = COUNT // comm.size
    first = share * comm.rank
    got = train(small_model(), slice(first, COUNT if comm.rank == comm.size - 1 else first + share))
    for have, want in zip(got, single.parameters(), strict=True):
        assert torch.linalg.norm(have - want) <= 1e-6 * torch.linalg.norm(want)


def main() -> None:
    comm = pycomm.init()
    for check in (
        neighbours_share_memory_and_hosts_do_not,
        a_sample_of_conformance,
        large_vectors,
        everyone_writes_to_everyone,
        a_late_receiver_is_waited_for,
        groups_within_and_across_hosts,
        training_is_that_of_one_process,
    ):
        check(comm)
        comm.barrier()
        if comm.rank == 0:
            print(check.__name__, flush=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
