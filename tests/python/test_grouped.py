"""Calls that start together, small all-reduces as one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pycomm import Communicator, InvalidArgument
from pycomm.testing import run_threads


@pytest.mark.parametrize("size", [1, 2, 3])
def test_grouped_calls_give_what_single_calls_give(size: int) -> None:
    def body(comm: Communicator) -> None:
        small = [np.full(n, comm.rank + 1, np.float32) for n in (0, 1, 7, 300)]
        tensors = [torch.full((2, n), comm.rank, dtype=torch.bfloat16) for n in (3, 5)]
        large = np.full(40_000, comm.rank, np.float64)
        least = np.array([comm.rank, -comm.rank])
        with comm.grouped() as group:
            for array in small:
                assert group.all_reduce(array) is array
            for tensor in tensors:
                group.all_reduce(tensor)
            group.all_reduce(large)
            group.all_reduce(least, op="min")
            gathered = group.all_gather(np.array([comm.rank]))
        total = size * (size + 1) / 2
        assert all((array == total).all() for array in small)
        assert all((tensor == size * (size - 1) / 2).all() for tensor in tensors)
        assert (large == size * (size - 1) / 2).all()
        assert least.tolist() == [0, 1 - size]
        assert gathered.tolist() == list(range(size))

    run_threads(size, body)


def test_small_all_reduces_travel_as_one_operation() -> None:
    def body(comm: Communicator) -> int:
        arrays = [np.ones(10, np.float32) for _ in range(50)]
        counted = _Counting(comm)
        with counted.grouped() as group:
            for array in arrays:
                group.all_reduce(array)
        assert all((array == 2).all() for array in arrays)
        return counted.started

    assert run_threads(2, body) == [1, 1]


class _Counting(Communicator):
    def __init__(self, comm: Communicator) -> None:
        super().__init__(comm._core, comm._world)
        self.started = 0

    def _start(self, call, result):  # type: ignore[no-untyped-def]
        self.started += 1
        return super()._start(call, result)


def test_arrays_of_different_kinds_on_different_ranks_travel_together() -> None:
    def body(comm: Communicator) -> None:
        a, b, c = np.ones(3, np.float32), np.full(4, 2, np.float32), bytearray(b"\x01\x02")
        mine: list[Any] = [a, b] if comm.rank == 0 else [a, torch.from_numpy(b)]
        with comm.grouped() as group:
            for array in mine:
                group.all_reduce(array)
            group.all_reduce(c)
            group.all_reduce(np.ones(2, np.uint8))
        assert (a == 2).all() and (b == 4).all() and c == b"\x02\x04"

    run_threads(2, body)


def test_scales_and_codecs_are_not_mixed_and_a_fused_array_has_a_limit() -> None:
    def body(comm: Communicator) -> tuple[int, list[float]]:
        counted = _Counting(comm)
        arrays = [np.full(16 << 10, 2, np.float32) for _ in range(100)]  # of 64 KiB: two fused of 4 MiB
        halved, coded = np.ones(4, np.float32), np.ones(4, np.float32)
        with counted.grouped() as group:
            for array in arrays:
                group.all_reduce(array)
            group.all_reduce(halved, scale=0.5)
            group.all_reduce(coded, codec="fp16")
        assert all((array == 4).all() for array in arrays)
        return counted.started, [halved[0], coded[0]]

    assert run_threads(2, body) == [(4, [1.0, 2.0])] * 2


def test_sends_and_receives_of_a_group_do_not_wait_for_each_other() -> None:
    def body(comm: Communicator) -> None:
        mine, theirs = np.full(100_000, comm.rank), np.empty(100_000, np.int64)
        with comm.grouped() as group:
            group.send(mine, 1 - comm.rank)
            group.recv(theirs, 1 - comm.rank)
        assert (theirs == 1 - comm.rank).all()

    run_threads(2, body)


def test_an_exception_in_the_block_starts_nothing() -> None:
    def body(comm: Communicator) -> None:
        x = np.ones(3)
        with pytest.raises(ZeroDivisionError), comm.grouped() as group:
            group.all_reduce(x)
            raise ZeroDivisionError
        assert comm.all_reduce(x).tolist() == [2, 2, 2]

    run_threads(2, body)


def test_a_wrong_call_is_refused_and_the_others_end() -> None:
    def body(comm: Communicator) -> None:
        x, apart = np.ones(3), np.ones((4, 4))[:, 1]
        with pytest.raises(InvalidArgument, match="not contiguous"), comm.grouped() as group:
            group.all_reduce(x)
            group.all_reduce(apart)
        assert x.tolist() == [2, 2, 2]
        assert (apart == 1).all()
        comm.barrier()

    run_threads(2, body)


def test_calls_outside_the_block_and_async_ones_are_refused() -> None:
    def body(comm: Communicator) -> None:
        group = comm.grouped()
        with pytest.raises(InvalidArgument, match="`with` block"):
            group.all_reduce(np.ones(3))
        with pytest.raises(InvalidArgument, match="all start when the block ends"), group:
            group.all_reduce_async(np.ones(3))

    run_threads(1, body)
