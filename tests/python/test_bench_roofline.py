"""The limits that memory and the wire set."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bench import roofline
from bench.operations import OPERATIONS


def test_the_roofline_is_the_least_traffic_at_the_bandwidth_of_rewriting() -> None:
    times = np.full(3, 2e-3)  # for 1 MB on each of 4 ranks, read and written
    memory = roofline.Memory(4)
    row = memory.row(OPERATIONS["all_reduce"], 1_000_000, times)
    assert (row["bandwidth_gbps"], row["time_us"]["p50"]) == (pytest.approx(4.0), pytest.approx(2000))
    scattered = memory.row(OPERATIONS["reduce_scatter"], 1_000_000, times)
    assert scattered["time_us"]["p50"] == pytest.approx(2000 * 5 / 8)


def test_the_roofline_rewrites_its_whole_buffer() -> None:
    contender = roofline.Memory(1).contender(OPERATIONS["all_reduce"], 1000)
    contender.rewrite()
    words = contender.call()
    assert isinstance(words, np.ndarray)
    assert words.nbytes == 1000
    assert (words == np.uint64(~1 & (2**64 - 1))).all()


def test_what_crosses_a_link_at_the_least() -> None:
    """Four nodes of two ranks; of the vector's bytes, each way."""
    crossing = {name: operation.crossing(4, 8) for name, operation in OPERATIONS.items()}
    assert crossing == {
        "all_reduce": 1.5,
        "reduce_scatter": 0.75,
        "all_gather": 0.75,
        "broadcast": 1.0,
        "reduce": 1.0,
        "gather": 0.75,
        "scatter": 0.75,
        "all_to_all": 1.5,
        "barrier": 0.0,
    }


@pytest.mark.parametrize("count", [1, roofline.STREAM_BUFFER, 3 * roofline.STREAM_BUFFER + 7])
def test_the_wire_carries_all_bytes_both_ways(count: int) -> None:
    here, there = socket.socketpair()
    with here, there, ThreadPoolExecutor(1) as pool:
        other = pool.submit(roofline.stream, there, there, count)
        roofline.stream(here, here, count)
        other.result(30)
        for end in (here, there):  # and none more
            with pytest.raises(BlockingIOError):
                end.recv(1)


def test_a_wire_that_breaks_is_an_error() -> None:
    here, there = socket.socketpair()
    with here:
        there.close()
        with pytest.raises(OSError):
            roofline.stream(here, here, 1000)
