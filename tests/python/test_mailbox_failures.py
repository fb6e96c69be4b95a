"""Mailboxes between ranks that are threads: back-pressure, failures, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pycomm
from pycomm import Communicator, InvalidArgument, Message
from pycomm.content import encode
from pycomm.testing import run_threads

pytestmark = pytest.mark.timeout(60)

WAYS = [
    pytest.param({"transport": transport, "progress": progress}, id=f"{transport}-{progress}")
    for transport in pycomm.info()["transports"]
    if transport.startswith("inproc")
    for progress in ("inline", "thread")
]
every_way = pytest.mark.parametrize("way", WAYS)


def bytes_of(size: int, seed: int) -> np.ndarray[Any, Any]:
    return (np.arange(size, dtype=np.uint32) * 7 + seed).astype(np.uint8)


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
            patient = box.send_async(1, 65)
            with pytest.raises(pycomm.Timeout, match=r"of 0\.05 s: waiting for earlier messages to it$"):
                box.send(1, 66, timeout=0.05)
            assert not patient.done() and comm.broken is None
            comm.barrier()
            box.send(1, 67)
            patient.wait()
            return []
        comm.barrier()
        return [box.recv(0).content for _ in range(66)]

    assert run_threads(2, rank)[1] == [*range(64), 65, 67]


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


def test_what_a_message_kept_alive_is_not_released_in_the_middle_of_a_pass() -> None:
    waited: list[bool] = []

    def rank(comm: Communicator) -> None:
        class Buffer(bytearray):
            def __del__(self) -> None:
                comm.all_reduce_async(np.ones(3)).wait(timeout=1)  # needs passes itself
                waited.append(True)

        head, pieces = encode(np.frombuffer(Buffer(10_000), np.uint8))
        comm.mailbox(1)._core.submit(0, head, pieces, 5.0)
        del pieces
        comm.mailbox(2)  # makes the pass that ends the message
        comm.barrier()
        assert waited == [True]

    run_threads(1, rank, progress="inline")


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
    "words for a time to send": (
        lambda c: c.mailbox(1).send(0, 0, timeout="3"),  # type: ignore[arg-type]
        "timeout is '3'; expected seconds above 0, or None",
    ),
    "words for a time to receive": (
        lambda c: c.mailbox(1).recv(timeout="3"),  # type: ignore[arg-type]
        "timeout is '3'",
    ),
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
