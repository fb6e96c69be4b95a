"""Mailboxes between ranks that are threads: delivery and order."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

import pycomm
from pycomm import Communicator
from pycomm.testing import run_threads

pytestmark = pytest.mark.timeout(60)

WAYS = [
    pytest.param({"transport": transport, "progress": progress}, id=f"{transport}-{progress}")
    for transport in pycomm.info()["transports"]
    if transport.startswith("inproc")
    for progress in ("inline", "thread")
]
every_way = pytest.mark.parametrize("way", WAYS)

# Around nothing, a frame, a segment (256 KiB) and several of them.
SIZES = (0, 1, 300, 430, 470, 520, 4000, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 1_000_003)


def bytes_of(size: int, seed: int) -> np.ndarray[Any, Any]:
    return (np.arange(size, dtype=np.uint32) * 7 + seed).astype(np.uint8)


# ---- delivery


@every_way
@pytest.mark.parametrize("n", [2, 3, 5])
def test_sizes_of_every_kind_arrive_from_everyone_in_order(way: dict[str, str], n: int) -> None:
    def rank(comm: Communicator) -> None:
        box = comm.mailbox(7)
        works = []
        for number, size in enumerate(SIZES):
            for peer in range(n):
                works.append(box.send_async(peer, (number, bytes_of(size, comm.rank))))
        due = [0] * n
        for _ in range(n * len(SIZES)):
            message = box.recv()
            number, array = message.content
            assert number == due[message.source]
            due[message.source] += 1
            np.testing.assert_array_equal(array, bytes_of(SIZES[number], message.source))
        for work in works:
            work.wait()
        assert box.poll() is None and comm.broken is None
        comm.barrier()  # poll() would say that the others have left

    run_threads(n, rank, **way)


@every_way
def test_a_named_source_is_served_though_others_came_first(way: dict[str, str]) -> None:
    def rank(comm: Communicator) -> list[int] | None:
        box = comm.mailbox(0)
        if comm.rank > 0:
            box.send(0, comm.rank)
            comm.barrier()
            return None
        comm.barrier()
        return [box.recv(source).content for source in (3, 1, 2)]

    assert run_threads(4, rank, **way)[0] == [3, 1, 2]


@every_way
def test_anyone_means_in_the_order_of_coming(way: dict[str, str]) -> None:
    def rank(comm: Communicator) -> list[int]:
        box = comm.mailbox(0)
        for round_ in range(9):
            if comm.rank == 1 + round_ * 5 % 3:
                box.send(0, round_)
            comm.barrier()
        got = [box.recv().content for _ in range(9)] if comm.rank == 0 else []
        comm.barrier()
        return got

    assert run_threads(4, rank, **way)[0] == list(range(9))


@every_way
def test_polling_moves_large_messages_too(way: dict[str, str]) -> None:
    def rank(comm: Communicator) -> None:
        box = comm.mailbox(0)
        work = box.send_async(1 - comm.rank, bytes_of(2_000_000, 3))
        until = time.monotonic() + 30
        while (message := box.poll(1 - comm.rank)) is None:
            assert time.monotonic() < until
        np.testing.assert_array_equal(message.content, bytes_of(2_000_000, 3))
        work.wait()
        comm.barrier()

    run_threads(2, rank, **way)


@every_way
def test_boxes_and_split_communicators_keep_apart(way: dict[str, str]) -> None:
    def rank(comm: Communicator) -> None:
        half = comm.split(comm.rank % 2, key=-comm.rank)
        assert half is not None
        boxes = [comm.mailbox(0), comm.mailbox(65535), half.mailbox(0)]
        for number, box in enumerate(boxes):
            for peer in range(2):
                box.send(peer, [number, bytes_of(1000, number)])
        members = {0: range(4), 1: range(4), 2: range(2)}
        for number, box in reversed(list(enumerate(boxes))):
            if number < 2 and comm.rank >= 2:
                continue
            for source in members[number]:
                message = box.recv(source)
                assert message.source == source and message.content[0] == number
                np.testing.assert_array_equal(message.content[1], bytes_of(1000, number))
            assert box.poll() is None
        comm.barrier()

    run_threads(4, rank, **way)


@every_way
def test_messages_come_through_while_collectives_run(way: dict[str, str]) -> None:
    def rank(comm: Communicator) -> None:
        box = comm.mailbox(1)
        to = (comm.rank + 1) % comm.size
        for round_ in range(10):
            works = [comm.all_reduce_async(np.full(30_000, 1.0)) for _ in range(4)]
            sent = box.send_async(to, {"round": round_, "x": bytes_of(40_000 * round_, round_)})
            message = box.recv()
            assert message.content["round"] == round_
            np.testing.assert_array_equal(message.content["x"], bytes_of(40_000 * round_, round_))
            for work in works:
                assert (work.wait() == comm.size).all()
            sent.wait()

    run_threads(3, rank, **way)


def test_received_arrays_are_writable_aligned_and_keep_their_memory() -> None:
    def rank(comm: Communicator) -> Any:
        box = comm.mailbox(3)
        for size in (10, 1_000_000):
            box.send(comm.rank, [np.arange(size), torch.arange(size), np.arange(size, dtype=np.int8)])
            a, b, c = box.recv().content
            addresses = (a.ctypes.data, b.data_ptr(), c.ctypes.data)
            assert all(address % 64 == 0 for address in addresses)
            assert a.base is not None  # a view
            a += 1
            b += 1
            c[0] = 5
            del a, c
            assert b.tolist()[-1] == size
        return b

    assert run_threads(1, rank)[0][0] == 1  # the engine is gone, the array is not


def test_what_is_sent_may_be_rewritten_once_send_returns() -> None:
    def rank(comm: Communicator) -> None:
        box = comm.mailbox(3)
        for size in (10, 600_000):
            if comm.rank == 0:
                x = np.zeros(size)
                box.send(1, x)
                x[:] = 1
                comm.barrier()
            else:
                content = box.recv(0).content
                comm.barrier()
                assert (content == 0).all()

    run_threads(2, rank)


def test_a_message_does_not_need_the_receiver_to_have_a_mailbox_yet() -> None:
    def rank(comm: Communicator) -> Any:
        if comm.rank == 0:
            comm.mailbox(9).send(1, "early")
        comm.barrier()
        return comm.mailbox(9).recv().content if comm.rank == 1 else None

    assert run_threads(2, rank) == [None, "early"]


def test_the_same_tag_gives_the_same_object() -> None:
    def rank(comm: Communicator) -> None:
        assert comm.mailbox(4) is comm.mailbox(4) is comm.mailbox(np.int64(4))  # type: ignore[arg-type]
        assert comm.mailbox(4) is not comm.mailbox(5) and comm.mailbox(4).tag == 4

    run_threads(1, rank)


@pytest.mark.parametrize("transport", ["inproc", "inproc_mapped"])
def test_with_a_progress_thread_a_send_completes_while_nobody_waits(transport: str) -> None:
    def rank(comm: Communicator) -> None:
        box = comm.mailbox(2)
        comm.barrier()
        work = box.send_async(1 - comm.rank, bytes_of(3_000_000, 1))
        until = time.monotonic() + 30
        while not work.done():
            assert time.monotonic() < until, "it does not advance by itself"
            time.sleep(0.001)
        np.testing.assert_array_equal(box.recv().content, bytes_of(3_000_000, 1))

    run_threads(2, rank, transport=transport, progress="thread")


def test_threads_of_one_rank_share_a_box() -> None:
    def rank(comm: Communicator) -> None:
        box = comm.mailbox(2)
        got: list[int] = []

        def receive() -> None:
            for _ in range(50):
                got.append(box.recv().content)

        if comm.rank == 0:
            threads = [threading.Thread(target=receive) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(got) == sorted([*range(100), *range(100)])
        else:
            for i in range(100):
                box.send(0, i)

    run_threads(3, rank)


# ---- what it is for


@every_way
def test_a_parameter_server(way: dict[str, str]) -> None:
    """Two workers push gradients as they have them; the server applies each and answers the parameters."""
    steps = 20

    def server(comm: Communicator) -> np.ndarray[Any, Any]:
        box = comm.mailbox(0)
        parameters = {"weight": np.zeros((30, 10)), "bias": torch.zeros(10)}
        for _ in range(2 * steps):
            message = box.recv()
            for name, gradient in message.content["gradients"].items():
                parameters[name] -= gradient
            box.send(message.source, {"parameters": parameters, "step": message.content["step"]})
        assert parameters["bias"].tolist() == [-3.0 * steps] * 10
        return parameters["weight"]

    def worker(comm: Communicator) -> None:
        box = comm.mailbox(0)
        pushed = 0.0
        for step in range(steps):
            gradients = {"weight": np.full((30, 10), comm.rank * step), "bias": torch.full((10,), comm.rank)}
            pushed += comm.rank * step
            box.send(0, {"gradients": gradients, "step": step})
            answer = box.recv(0).content
            assert answer["step"] == step
            assert (answer["parameters"]["weight"] <= -pushed).all()  # with this push, and what others pushed

    def rank(comm: Communicator) -> Any:
        return server(comm) if comm.rank == 0 else worker(comm)

    weight = run_threads(3, rank, **way)[0]
    assert (weight == -3.0 * sum(range(steps))).all()
