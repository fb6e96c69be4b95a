"""Blocking calls that are made again on the same memory."""

from __future__ import annotations

import threading
import weakref

import numpy as np
import pytest
import torch

from pycomm import Communicator, InvalidArgument
from pycomm.testing import run_threads


def test_arrays_are_let_go_when_the_call_returns() -> None:
    def body(comm: Communicator) -> None:
        x, y = np.ones(3), torch.ones(3)
        gone = [weakref.ref(x), weakref.ref(y)]
        for _ in range(3):
            comm.all_reduce(x)
            comm.all_reduce(y)
        del x, y
        assert [reference() for reference in gone] == [None, None]

    run_threads(2, body)


def test_the_same_memory_with_another_length_dtype_or_op_is_another_call() -> None:
    def body(comm: Communicator) -> None:
        memory = np.zeros(8, np.int32)
        for turn in range(3):
            memory[:] = turn + comm.rank
            assert comm.all_reduce(memory).tolist() == [2 * turn + 1] * 8
            memory[:] = turn + comm.rank
            assert comm.all_reduce(memory, "max").tolist() == [turn + 1] * 8
            memory[:] = turn
            assert comm.all_reduce(memory[:3]).tolist() == [2 * turn] * 3
            assert memory[3:].tolist() == [turn] * 5
            memory[:] = 1
            assert comm.all_reduce(memory.view(np.int64)).tolist() == [(2 << 32) + 2] * 4

    run_threads(2, body)


def test_two_threads_make_the_same_call_at_once() -> None:
    def body(comm: Communicator) -> None:
        x = np.zeros(100)

        def meet() -> None:
            for _ in range(50):
                comm.all_reduce(x)

        threads = [threading.Thread(target=meet) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (x == 0).all()
        assert (comm.all_reduce(np.ones(5)) == 2).all()

    run_threads(2, body)


def test_a_refused_call_leaves_the_next_one_alone() -> None:
    def body(comm: Communicator) -> None:
        x = np.ones(4)
        for turn in range(3):
            with pytest.raises(InvalidArgument):
                comm.all_reduce(x, "max", codec="fp16")
            assert comm.all_reduce(x).tolist() == [2.0 ** (turn + 1)] * 4

    run_threads(2, body)
