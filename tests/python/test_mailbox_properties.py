"""Random programs of sends and receives against a simple model: per pair and box a queue."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from pycomm import Communicator
from pycomm.testing import run_threads

pytestmark = pytest.mark.timeout(120)

SEGMENT = 1 << 18
# Around nothing, the 512 bytes of a frame, a segment, several.
sizes = st.one_of(
    st.sampled_from([0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 5]),
    st.integers(380, 480),
    st.integers(0, 3000),
)


@dataclass(frozen=True)
class Send:
    source: int
    peer: int
    box: int
    size: int
    pieces: int


@dataclass(frozen=True)
class Program:
    ranks: int
    sends: list[Send]  # each rank's in this order
    named: list[bool]  # by message received, over and over: from a named rank, or from anyone
    collectives: int  # that run meanwhile
    blocking: bool
    way: dict[str, str]


@st.composite
def programs(draw: st.DrawFn) -> Program:
    ranks = draw(st.integers(1, 4))
    rank = st.integers(0, ranks - 1)
    send = st.builds(Send, rank, rank, st.integers(0, 2), sizes, st.integers(1, 3))
    return Program(
        ranks=ranks,
        # At most 64 messages and 16 MiB, so that nobody need receive before all have sent.
        sends=draw(st.lists(send, max_size=20)),
        named=draw(st.lists(st.booleans(), min_size=1, max_size=5)),
        collectives=draw(st.integers(0, 3)),
        blocking=draw(st.booleans()),
        way={
            "transport": draw(st.sampled_from(["inproc", "inproc_mapped"])),
            "progress": draw(st.sampled_from(["inline", "thread"])),
        },
    )


def content_of(number: int, send: Send) -> dict[str, Any]:
    pattern = np.arange(send.size, dtype=np.uint32).astype(np.uint8) + np.uint8(number)
    return {"number": number, "pieces": np.array_split(pattern, send.pieces)}


def interpret(comm: Communicator, program: Program) -> None:
    boxes = [comm.mailbox(tag) for tag in range(3)]
    gradients = [comm.all_reduce_async(np.full(5000, 1.0)) for _ in range(program.collectives)]
    works = []
    for number, send in enumerate(program.sends):
        if send.source != comm.rank:
            continue
        if program.blocking:
            boxes[send.box].send(send.peer, content_of(number, send))
        else:
            works.append(boxes[send.box].send_async(send.peer, content_of(number, send)))

    model: dict[int, dict[int, collections.deque[int]]] = {
        box: {source: collections.deque() for source in range(comm.size)} for box in range(3)
    }
    for number, send in enumerate(program.sends):
        if send.peer == comm.rank:
            model[send.box][send.source].append(number)
    received = 0
    while any(queue for sources in model.values() for queue in sources.values()):
        box = next(
            b for b in (received % 3, (received + 1) % 3, (received + 2) % 3) if any(model[b].values())
        )
        source = None
        if program.named[received % len(program.named)]:
            source = next(s for s, queue in model[box].items() if queue)
        message = boxes[box].recv(source)
        assert source in (None, message.source)
        number = model[box][message.source].popleft()
        expected = content_of(number, program.sends[number])
        assert message.content["number"] == number
        assert len(message.content["pieces"]) == len(expected["pieces"])
        for arrived, sent in zip(message.content["pieces"], expected["pieces"], strict=True):
            np.testing.assert_array_equal(arrived, sent)
        received += 1

    for work in works:
        work.wait()
    for gradient in gradients:
        assert (gradient.wait() == comm.size).all()
    comm.barrier()
    assert all(box.poll() is None for box in boxes), "something came twice"
    comm.barrier()


@hypothesis.settings(max_examples=100, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(program=programs())
def test_nothing_is_lost_or_doubled_or_overtakes(program: Program) -> None:
    run_threads(program.ranks, interpret, program, **program.way)


@dataclass(frozen=True)
class Flood:
    sizes: list[int]  # of the messages of each sender, over and over
    count: int
    pause_every: int  # the receiver meets the senders after so many


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    flood=st.builds(Flood, st.lists(sizes, min_size=1, max_size=4), st.integers(65, 150), st.integers(1, 70))
)
def test_senders_beyond_their_credit_keep_the_order(flood: Flood) -> None:
    def rank(comm: Communicator) -> None:
        box, go = comm.mailbox(5), comm.mailbox(6)
        if comm.rank > 0:
            for i in range(flood.count):
                size = min(flood.sizes[i % len(flood.sizes)], SEGMENT + 1)
                box.send(0, (i, np.full(size, i, np.uint8)))
            assert go.recv(0).content == "well"
            return
        due = collections.Counter[int]()
        for k in range(2 * flood.count):
            message = box.recv(1 + k % 2 if k % flood.pause_every == 0 and k < flood.count else None)
            i, array = message.content
            assert i == due[message.source] and (array == i % 256).all()
            due[message.source] += 1
        go.send(1, "well")
        go.send(2, "well")

    run_threads(3, rank)
