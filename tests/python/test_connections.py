"""Which transport leads to whom, and that ranks that never talk to each other are never connected."""

from __future__ import annotations

import numpy as np
import pytest

from pycomm import Communicator, InvalidArgument
from pycomm.testing import run_threads


def test_no_connection_before_the_first_message() -> None:
    assert run_threads(4, lambda comm: comm.connections) == [[]] * 4


def test_a_ring_connects_neighbours_only() -> None:
    def body(comm: Communicator) -> list[int]:
        comm.all_reduce(np.ones(100), algorithm="ring")
        return comm.connections

    assert run_threads(6, body, transport="inproc") == [sorted({(r + 1) % 6, (r - 1) % 6}) for r in range(6)]


def test_a_group_numbers_its_connections_by_its_own_ranks() -> None:
    def body(comm: Communicator) -> tuple[list[int], list[int]]:
        half = comm.split(comm.rank % 2)
        assert half is not None
        before = half.connections
        half.all_reduce(np.ones(100), algorithm="ring")
        return before, half.connections

    for _, after in run_threads(6, body, transport="inproc"):
        assert len(after) >= 2
        assert set(after) <= {0, 1, 2}


def test_the_transport_to_each_rank() -> None:
    def body(comm: Communicator) -> tuple[list[str], list[str]]:
        turned = comm.split(0, key=-comm.rank)
        assert turned is not None
        with pytest.raises(InvalidArgument, match="rank is 3; expected 0 to 2"):
            comm.transport_to(3)
        return [comm.transport_to(r) for r in range(3)], [turned.transport_to(r) for r in range(3)]

    for rank, (straight, turned) in enumerate(run_threads(3, body, transport="inproc")):
        assert straight == ["none" if r == rank else "inproc" for r in range(3)]
        assert turned == straight[::-1]
