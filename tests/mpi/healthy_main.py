"""What a healthy job may do, on three ranks; ends with exit status 0 and says nothing on standard error."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
import warnings

import numpy as np

import pycomm

warnings.simplefilter("error")

TRANSPORT = os.environ.get("PYCOMM_TRANSPORTS", "shm")  # what connects the ranks of one node


def world_is_that_of_the_launcher(comm: pycomm.Communicator) -> None:
    assert (comm.rank, comm.size) == (int(os.environ["OMPI_COMM_WORLD_RANK"]), 3)
    assert comm.local_size == 3 and comm.local_rank == comm.rank
    assert comm.transport == TRANSPORT
    assert comm.progress == os.environ["PYCOMM_PROGRESS"]
    assert pycomm.init() is comm and pycomm.is_initialized()
    assert pycomm.info()["mpi_thread_level"] == "MPI_THREAD_MULTIPLE"


def collectives_and_messages(comm: pycomm.Communicator) -> None:
    for count in (0, 1, 1000, 300_000):
        assert (comm.all_reduce(np.full(count, comm.rank + 1.0)) == 6).all()
    assert comm.all_gather(np.array([comm.rank])).tolist() == [0, 1, 2]
    for root in range(3):
        assert comm.broadcast(np.full(5, comm.rank), root=root).tolist() == [root] * 5
    to, source = (comm.rank + 1) % 3, (comm.rank - 1) % 3
    for count in (0, 1, 70_000, 2_000_000):
        send = comm.send_async(np.full(count, comm.rank, np.uint8), to)
        assert (comm.recv(np.empty(count, np.uint8), source) == source).all()
        send.wait()


def many_in_flight_and_some_dropped(comm: pycomm.Communicator) -> None:
    arrays = [np.full(random.Random(i).choice([1, 100, 50_000]), float(comm.rank)) for i in range(60)]
    works = [comm.all_reduce_async(x) for x in arrays]
    order = list(range(0, 60, 2))
    random.Random(comm.rank).shuffle(order)
    for i in order:
        assert (works[i].wait() == 3).all()
    del works
    comm.barrier()
    assert all((x == 3).all() for x in arrays)


def two_threads_two_communicators(comm: pycomm.Communicator) -> None:
    a, b = comm.split(0), comm.split(0)
    assert a is not None and b is not None
    results = []
    threads = []
    for group in (a, b) if comm.rank == 0 else (b, a):
        work = threading.Thread(
            target=lambda g=group: results.append(g.all_reduce(np.ones(20_000), timeout=30)[0])
        )
        work.start()
        threads.append(work)
        time.sleep(0.05)
    for work in threads:
        work.join(30)
    assert results == [3.0, 3.0]


def a_rank_outside_a_group_is_not_needed(comm: pycomm.Communicator) -> None:
    group = comm.split(None if comm.rank == 0 else 1)
    if group is not None:
        for _ in range(5):
            assert group.all_reduce(np.ones(10))[0] == 2
        assert group.transport == TRANSPORT
    comm.barrier()


def a_broken_group_leaves_the_world(comm: pycomm.Communicator) -> None:
    group = comm.split(0)
    assert group is not None
    try:
        # Each root only sends: the next call tells.
        group.broadcast(np.ones(3), root=min(comm.rank, 1), algorithm="direct", timeout=20)
        group.barrier(timeout=20)
    except pycomm.MismatchError as error:
        assert "made different calls before" in str(error), error
    else:
        raise AssertionError("different roots went unnoticed")
    assert comm.all_reduce(np.ones(3)).tolist() == [3.0] * 3


def mpi4py_goes_along(comm: pycomm.Communicator) -> None:
    from mpi4py import MPI

    assert MPI.COMM_WORLD.allreduce(comm.rank) == 3
    work = comm.all_reduce_async(np.ones(100_000))
    assert MPI.COMM_WORLD.allgather(comm.rank) == [0, 1, 2]
    assert work.wait()[0] == 3


def shut_down_and_start_again(comm: pycomm.Communicator) -> None:
    comm.barrier()
    pycomm.shutdown()
    pycomm.shutdown()
    with contextlib.suppress(pycomm.Aborted):
        comm.barrier()
        raise AssertionError("a call after shutdown() went through")
    again = pycomm.init()
    assert again is not comm and again.all_reduce(np.ones(3)).tolist() == [3.0] * 3
    for _ in range(4):
        pycomm.shutdown()
        again = pycomm.init()
    # Nothing of the earlier worlds is taken for a message of this one.
    works = [again.all_reduce_async(np.full(100, float(i)), algorithm="ring") for i in range(8)]
    assert all((work.wait() == 3 * i).all() for i, work in enumerate(works))
    pycomm.shutdown()

    from mpi4py import MPI

    reversed_world = MPI.COMM_WORLD.Split(0, -again.rank)
    turned = pycomm.init(comm=reversed_world)
    assert turned.rank == 2 - again.rank and turned.all_gather(np.array([turned.rank])).tolist() == [0, 1, 2]
    turned.barrier()


def main() -> None:
    comm = pycomm.init()
    for check in (
        world_is_that_of_the_launcher,
        collectives_and_messages,
        many_in_flight_and_some_dropped,
        two_threads_two_communicators,
        a_rank_outside_a_group_is_not_needed,
        a_broken_group_leaves_the_world,
        mpi4py_goes_along,
        shut_down_and_start_again,
    ):
        check(comm)
    if comm.rank == 0:
        print("well", flush=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
