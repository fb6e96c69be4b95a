"""Mailboxes between ranks that are threads: delivery, order, back-pressure, failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import pycomm
from pycomm import Communicator, InvalidArgument, Message
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


# ---- back-pressure


@every_way
def test_a_sender_without_credit_waits_and_goes_on_when_mail_is_received(way: dict[str, str]) -> None:
    def rank(comm: Communicator) -> None:
        box, other = comm.mailbox(7), comm.mailbox(8)
        if comm.rank == 0:
            works = [box.send_async(1, i) for i in range(200)]
            other.send(1, "not held up")
            assert comm.all_reduce(np.ones(10))[0] == 2
            works[63].wait()
            assert not any(work.done() for work in works[64:])
            comm.barrier()
            for work in works:
                work.wait()
        else:
            assert other.recv(0).content == "not held up"
            comm.all_reduce(np.ones(10))
            comm.barrier()
            assert [box.recv().content for _ in range(200)] == list(range(200))
        comm.barrier()

    run_threads(2, rank, **way)


def test_bytes_are_bounded_too_and_a_larger_message_goes_alone() -> None:
    def rank(comm: Communicator) -> None:
        box = comm.mailbox(7)
        big = np.zeros(20 << 20, np.uint8)
        if comm.rank == 0:
            first, second = box.send_async(1, big), box.send_async(1, big[:1000])
            first.wait()
            comm.mailbox(8).send(1, big)  # another box is not held up
            comm.barrier()
            assert not second.done()
            comm.barrier()
            box.send(1, big)
            assert second.done()
        else:
            comm.barrier()
            comm.barrier()
            assert [box.recv(0).content.size for _ in range(3)] == [big.size, 1000, big.size]

    run_threads(2, rank)


def test_a_receiver_that_never_receives_makes_the_sender_time_out_and_breaks_nothing() -> None:
    def rank(comm: Communicator) -> list[int]:
        box = comm.mailbox(7)
        if comm.rank == 0:
            for i in range(64):
                box.send(1, i)
            with pytest.raises(
                pycomm.Timeout, match="rank 1 has not received 64 earlier messages of mailbox 7"
            ):
                box.send(1, 64, timeout=0.05)
            works = [box.send_async(1, i, timeout=0.05) for i in (65, 66)]
            with pytest.raises(pycomm.Timeout, match=r"rank 1 has not received 64|earlier messages"):
                works[1].wait()
            assert isinstance(works[0].error(), pycomm.Timeout) and comm.broken is None
            comm.barrier()
            box.send(1, 67)
            return []
        comm.barrier()
        return [box.recv(0).content for _ in range(65)]

    assert run_threads(2, rank)[1] == [*range(64), 67]


def test_a_receiver_that_is_in_no_call_is_named_by_the_sender_that_waits() -> None:
    out, waited = threading.Event(), threading.Event()

    def rank(comm: Communicator) -> None:
        boxes = [comm.mailbox(tag) for tag in range(4)]
        comm.barrier()
        if comm.rank == 1:
            out.set()
            assert waited.wait(30)
            assert [box.recv(0).content for box in boxes for _ in range(8)] == list(range(8)) * 4
        else:
            assert out.wait(30)
            for box in boxes:
                for i in range(8):
                    box.send(1, i)
            with pytest.raises(pycomm.Timeout, match="rank 1 has not looked at 32 earlier frames"):
                boxes[0].send(1, 8, timeout=0.05)
            assert comm.broken is None
            waited.set()
        comm.barrier()

    run_threads(2, rank)


def test_a_message_to_oneself_needs_credit_too() -> None:
    def rank(comm: Communicator) -> None:
        box = comm.mailbox(7)
        for i in range(64):
            box.send(0, i)
        with pytest.raises(pycomm.Timeout, match="rank 0 has not received 64 earlier messages"):
            box.send(0, 64, timeout=0.02)
        assert [box.recv(0).content for _ in range(64)] == list(range(64))
        box.send(0, 65)
        assert box.recv() == Message(0, 65)

    run_threads(1, rank)


# ---- failures


def test_a_recv_that_times_out_breaks_nothing() -> None:
    def rank(comm: Communicator) -> Any:
        box = comm.mailbox(7)
        with pytest.raises(pycomm.Timeout, match=r"no message from anyone in mailbox 7 after 0\.02 s"):
            box.recv(timeout=0.02)
        with pytest.raises(pycomm.Timeout, match=r"rank .: no message from rank 1 in mailbox 7"):
            box.recv(1, timeout=0.02)
        comm.barrier()
        box.send(1 - comm.rank, comm.rank)
        return box.recv().content

    assert run_threads(2, rank) == [1, 0]


@every_way
def test_a_broken_communicator_says_its_first_cause(way: dict[str, str]) -> None:
    def rank(comm: Communicator) -> None:
        group = comm.split(0)
        assert group is not None
        box = group.mailbox(7)
        if comm.rank == 0:
            comm.barrier()
            group.abort("enough")
        else:
            comm.barrier()
            with pytest.raises(pycomm.Aborted, match="enough"):
                box.recv()
        for call in (lambda: box.send(0, 1), box.recv, box.poll):
            with pytest.raises(pycomm.Aborted, match="enough"):
                call()
        comm.mailbox(7).send(1 - comm.rank, "well")
        assert comm.mailbox(7).recv().content == "well"

    run_threads(2, rank, **way)


@every_way
def test_the_mail_of_a_rank_that_left_can_be_received_and_then_nothing(way: dict[str, str]) -> None:
    def rank(comm: Communicator) -> None:
        box = comm.mailbox(7)
        comm.barrier()
        if comm.rank > 0:
            box.send(0, comm.rank)
            return
        assert box.recv(1).content == 1
        with pytest.raises(pycomm.Aborted, match="world rank 1 has left"):
            box.recv(1)
        assert box.recv().content == 2
        with pytest.raises(pycomm.Aborted, match="all other ranks have left"):
            box.recv()
        with pytest.raises(pycomm.Aborted, match="world rank 2 has left"):
            box.send(2, "x")
        with pytest.raises(pycomm.Aborted, match="world rank 2 has left"):
            box.send(2, bytes_of(1_000_000, 0))
        box.send(0, "to myself")
        assert box.recv().content == "to myself" and comm.broken is None

    run_threads(3, rank, **way)


@every_way
def test_closing_with_mail_in_flight_fails_it(way: dict[str, str]) -> None:
    works: list[Any] = []

    def rank(comm: Communicator) -> None:
        box = comm.mailbox(7)
        comm.barrier()
        if comm.rank == 0:
            works.extend(box.send_async(1, bytes_of(size, 0)) for size in (5_000_000, 10, 20_000_000))
            works.extend(box.send_async(1, i) for i in range(100))

    run_threads(2, rank, **way)
    assert all(work.done() for work in works)
    assert isinstance(works[-1].error(), pycomm.Aborted)


def test_a_message_that_its_sender_left_unfinished_never_comes() -> None:
    left = threading.Event()

    def rank(comm: Communicator) -> None:
        box = comm.mailbox(7)
        if comm.rank == 0:
            box.send(1, "whole")
            comm.barrier()
            box.send_async(1, bytes_of(10_000_000, 0))  # rank 1 is in no call
            left.set()
            return
        comm.barrier()
        left.wait()
        assert box.recv(0).content == "whole"
        with pytest.raises(pycomm.Aborted, match="world rank 0 has left"):
            box.recv(0)

    run_threads(2, rank)


def test_after_the_end_calls_are_refused() -> None:
    boxes = run_threads(1, lambda comm: comm.mailbox(1))
    for call in (lambda: boxes[0].send(0, 1), boxes[0].recv, boxes[0].poll):
        with pytest.raises(pycomm.Aborted, match="shut down"):
            call()


# ---- refused before anything moves

REFUSED: dict[str, tuple[Callable[[Communicator], Any], str]] = {
    "tag below zero": (lambda c: c.mailbox(-1), "tag is -1; expected a whole number from 0 to 65535"),
    "tag too high": (lambda c: c.mailbox(65536), "tag is 65536"),
    "tag far too high": (lambda c: c.mailbox(2**40), f"tag is {2**40}"),
    "tag that is no number": (lambda c: c.mailbox("a"), "tag is 'a'"),  # type: ignore[arg-type]
    "tag that is a truth": (lambda c: c.mailbox(True), "tag is True"),
    "peer too high": (lambda c: c.mailbox(1).send(2, 0), "peer is 2; expected a rank from 0 to 1"),
    "peer below zero": (lambda c: c.mailbox(1).send(-1, 0), "peer is -1"),
    "source too high": (lambda c: c.mailbox(1).recv(2), "source is 2; expected a rank from 0 to 1"),
    "source below zero": (lambda c: c.mailbox(1).poll(-1), "source is -1"),
    "no time to send": (lambda c: c.mailbox(1).send(0, 0, timeout=0), "timeout is 0"),
    "no time to receive": (lambda c: c.mailbox(1).recv(timeout=float("nan")), "timeout is nan"),
    "content": (
        lambda c: c.mailbox(1).send(0, {"grads": [0, 1, 2, {3}]}),
        r"content\['grads'\]\[3\] is a set; expected dict",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_reason_and_nothing_moves(name: str) -> None:
    call, words = REFUSED[name]

    def rank(comm: Communicator) -> None:
        with pytest.raises(InvalidArgument, match=words):
            call(comm)
        assert comm.broken is None
        comm.barrier()
        assert comm.mailbox(1).poll() is None
        comm.barrier()

    run_threads(2, rank)


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
