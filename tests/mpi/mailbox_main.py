"""Mailboxes over MPI on three ranks; ends with exit status 0 and says nothing on standard error."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np

import pycomm

warnings.simplefilter("error")

# Around nothing, a frame (512 bytes), the eager limit within a node (4 KiB), a segment (256 KiB), many.
SIZES = (0, 1, 420, 470, 4000, 5000, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 5_000_011)


def bytes_of(size: int, seed: int) -> np.ndarray[Any, Any]:
    return (np.arange(size, dtype=np.uint32) * 7 + seed).astype(np.uint8)


def everyone_writes_to_everyone_while_collectives_run(comm: pycomm.Communicator) -> None:
    box = comm.mailbox(7)
    gradients = [comm.all_reduce_async(np.full(200_000, 1.0)) for _ in range(8)]
    works = [
        box.send_async(peer, {"number": number, "bytes": bytes_of(size, comm.rank)})
        for number, size in enumerate(SIZES)
        for peer in range(comm.size)
    ]
    due = [0] * comm.size
    for _ in range(comm.size * len(SIZES)):
        message = box.recv(timeout=30)
        number = message.content["number"]
        assert number == due[message.source]
        due[message.source] += 1
        assert np.array_equal(message.content["bytes"], bytes_of(SIZES[number], message.source))
    for work in [*works, *gradients]:
        work.wait()
    assert all((gradient.wait() == comm.size).all() for gradient in gradients)
    comm.barrier()
    assert box.poll() is None


def a_flood_is_held_back(comm: pycomm.Communicator) -> None:
    group = comm.split(0)
    assert group is not None
    box = group.mailbox(0)
    if comm.rank > 0:
        for i in range(1000):
            box.send(0, (i, bytes_of(3000 if i % 50 == 0 else 10, i)))
    else:
        due = [0] * comm.size
        for _ in range(1000 * (comm.size - 1)):
            message = box.recv()
            i, array = message.content
            assert i == due[message.source] and np.array_equal(array, bytes_of(array.size, i))
            due[message.source] += 1
    comm.barrier()


def a_full_box_times_out_and_breaks_nothing(comm: pycomm.Communicator) -> None:
    box = comm.mailbox(8)
    if comm.rank == 0:
        for i in range(64):
            box.send(1, i)
        try:
            box.send(1, 64, timeout=0.05)
        except pycomm.Timeout as error:
            assert "rank 1 has not received 64 earlier messages of mailbox 8" in str(error), error
        else:
            raise AssertionError("a full box took another message")
    comm.barrier()
    if comm.rank == 1:
        assert [box.recv(0).content for _ in range(64)] == list(range(64))
    assert comm.broken is None
    comm.barrier()


def a_forked_child_is_refused(comm: pycomm.Communicator) -> None:
    box = comm.mailbox(9)
    pid = os.fork()
    if pid == 0:
        for call in (lambda: box.send(0, 1), box.recv, box.poll, lambda: comm.mailbox(10)):
            try:
                call()
            except pycomm.Aborted:
                continue
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def mail_of_a_rank_that_left(comm: pycomm.Communicator) -> None:
    box = comm.mailbox(11)
    if comm.rank == 2:
        box.send(0, bytes_of(100, 2))
        box.send(0, bytes_of(1_000_000, 2))
        pycomm.shutdown()
        return
    if comm.rank == 0:
        for size in (100, 1_000_000):
            assert np.array_equal(box.recv(2).content, bytes_of(size, 2))
        try:
            box.recv(2)
        except pycomm.Aborted as error:
            assert "world rank 2 has left" in str(error), error
        else:
            raise AssertionError("a message of nobody")
    assert comm.broken is None


def main() -> None:
    comm = pycomm.init()
    for check in (
        everyone_writes_to_everyone_while_collectives_run,
        a_flood_is_held_back,
        a_full_box_times_out_and_breaks_nothing,
        a_forked_child_is_refused,
        mail_of_a_rank_that_left,
    ):
        check(comm)
    if comm.rank == 0:
        print("well", flush=True)


if __name__ == "__main__":
    main()
