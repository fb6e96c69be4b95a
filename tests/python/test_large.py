"""Vectors of more than 2**31 elements and bytes: no count, offset or length on the way has 32 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pycomm import Communicator
from pycomm.testing import run_threads

COUNT = 2**31 + 12_345
GIB = 2**30


def available_bytes() -> int:
    rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024


def require_memory() -> None:
    if available_bytes() < 8 * GIB:
        pytest.skip("needs 8 GiB of free memory")


# Where 32 bits, signed or not, in elements or in bytes of f16, would end; and where chunks meet.
PLACES = [0, 1, COUNT // 2 - 1, COUNT // 2, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 2**31 + 1, COUNT - 1]
AROUND = 1000


@pytest.mark.long
def test_more_than_two_to_the_31_elements_are_reduced() -> None:
    require_memory()

    def body(comm: Communicator) -> None:
        x = np.zeros(COUNT, np.uint8)
        for i, place in enumerate(PLACES):
            x[place] = (comm.rank + 1) * (i + 1)
        comm.all_reduce(x, algorithm="ring")
        assert [int(x[place]) for place in PLACES] == [3 * (i + 1) for i in range(len(PLACES))]
        for place in PLACES:  # and nothing came to lie beside them
            near = range(max(0, place - AROUND), min(COUNT, place + AROUND))
            assert np.count_nonzero(x[near.start : near.stop]) == sum(p in near for p in PLACES)

    run_threads(2, body, transport="inproc")


@pytest.mark.long
def test_a_part_of_more_than_two_to_the_31_bytes_is_gathered_and_scattered() -> None:
    require_memory()
    counts = [0, 2**30 + 77]
    places = [0, 2**29, 2**30 - 1, 2**30, 2**30 + 76]

    def body(comm: Communicator) -> None:
        mine = np.zeros(counts[comm.rank], np.float16)
        mine[[place for place in places if len(mine)]] = 5
        whole = comm.gather(mine, root=0, counts=counts)
        part = comm.scatter(whole, root=0, counts=counts, out=np.zeros(counts[comm.rank], np.float16))
        for array in (whole, part):
            if array is not None and len(array):
                assert array[places].tolist() == [5] * len(places)
                assert np.count_nonzero(array[2**30 - AROUND : 2**30 + 77]) == 3

    run_threads(2, body, transport="inproc")
