"""Operations that are checked once and made many times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import pycomm
from pycomm import Communicator, InvalidArgument, MismatchError
from pycomm.testing import run_threads


@pytest.mark.parametrize("progress", ["inline", "thread"])
def test_each_run_does_what_the_plain_call_does(progress: str) -> None:
    def body(comm: Communicator) -> None:
        n, r = comm.size, comm.rank
        x, y = np.ones(10, np.float32), torch.arange(6.0)
        whole = np.arange(2 * n)
        summed, gathered = comm.all_reduce_init(x), comm.all_gather_init(y)
        scattered = comm.reduce_scatter_init(whole)
        spread = comm.scatter_init(whole if r == 1 else None, root=1, out=np.empty(2, whole.dtype))
        collected, reduced = (
            comm.gather_init(whole, root=1),
            comm.reduce_init(whole, out=np.empty(2 * n, int)),
        )
        exchanged, told, meeting = (
            comm.all_to_all_init(whole),
            comm.broadcast_init(x, root=1),
            comm.barrier_init(),
        )
        for turn in range(1, 4):
            x[:] = turn
            y += 1
            whole += 1
            assert summed() is x
            assert (x == turn * n).all()
            assert gathered().tolist() == y.tolist() * n
            assert scattered().tolist() == (n * whole[2 * r : 2 * r + 2]).tolist()
            assert spread().tolist() == whole[2 * r : 2 * r + 2].tolist()
            assert (collected() is None) == (r != 1)
            assert (reduced() is None) == (r != 0)
            assert exchanged().tolist() == whole[2 * r : 2 * r + 2].tolist() * n
            x[:] = r
            assert (told() == 1).all()
            meeting()

    run_threads(3, body, progress=progress)


def test_sends_and_receives_can_be_started_and_waited_for() -> None:
    def body(comm: Communicator) -> None:
        x = np.zeros(50_000)
        op = comm.send_init(x, 1) if comm.rank == 0 else comm.recv_init(x, 0)
        for turn in range(3):
            if comm.rank == 0:
                x[:] = turn
            op.start()
            op.wait()
            assert op.done()
            assert (x == turn).all()

    run_threads(2, body)


def test_chosen_parts_and_codecs_are_kept() -> None:
    def body(comm: Communicator) -> None:
        mine = np.full(3 * comm.rank, 7.0)
        gather = comm.all_gather_init(mine, counts=[0, 3])
        halved = comm.all_reduce_init(np.full(9, 4.0, np.float32), codec="fp16", scale=0.5)
        assert [gather().tolist() for _ in range(2)] == [[7.0] * 3] * 2
        assert halved().tolist() == [4.0] * 9
        assert halved().tolist() == [4.0] * 9

    run_threads(2, body)


WRONG: dict[str, Callable[[Communicator], Any]] = {
    "op": lambda comm: comm.all_reduce_init(np.ones(2), op="mean"),
    "not contiguous": lambda comm: comm.broadcast_init(np.ones((4, 4))[:, 0]),
    "received": lambda comm: comm.all_to_all_init(np.ones(2), counts=[1, 1]),
    "before start": lambda comm: comm.barrier_init().wait(),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_arguments_are_refused_when_it_is_made(words: str) -> None:
    def body(comm: Communicator) -> None:
        with pytest.raises(InvalidArgument, match=words):
            WRONG[words](comm)
        comm.barrier()

    run_threads(2, body)


def test_an_operation_under_way_is_not_started_again() -> None:
    def body(comm: Communicator) -> None:
        x = np.ones(100)
        op = comm.all_reduce_init(x)
        if comm.rank == 0:
            op.start()
            assert not op.done()
            for again in (op.start, op):
                with pytest.raises(InvalidArgument, match=r"all_reduce: .* under way: wait\(\) for it"):
                    again()
            comm.mailbox(0).send(1, "now")
            op.wait()
        else:
            comm.mailbox(0).recv()
            op()
        assert (x == 2).all()

    run_threads(2, body)


def test_it_takes_no_arguments() -> None:
    def body(comm: Communicator) -> None:
        op = comm.all_reduce_init(np.ones(3))
        for call in (lambda: op(1), lambda: op(timeout=1)):  # type: ignore[call-arg]
            with pytest.raises(TypeError, match="without arguments"):
                call()
        assert op().tolist() == [2.0] * 3

    run_threads(2, body)


def test_ranks_that_run_different_ones_are_told() -> None:
    def body(comm: Communicator) -> None:
        op = comm.all_reduce_init(np.ones(3 + comm.rank))
        with pytest.raises(MismatchError, match=r"f64 x 3.*f64 x 4|f64 x 4.*f64 x 3"):
            op()
        with pytest.raises(MismatchError):
            op()

    run_threads(2, body, transport="inproc")


def test_arrays_live_as_long_as_the_operation() -> None:
    def body(comm: Communicator) -> None:
        op = comm.all_reduce_init(np.ones(1 << 16))
        others = [np.zeros(1 << 16) for _ in range(8)]  # would take the memory of one that is gone
        assert (op() == 2).all()
        assert all((other == 0).all() for other in others)

    run_threads(2, body)


def test_after_shutdown_it_says_so() -> None:
    comm = pycomm.init()
    op = comm.all_reduce_init(np.ones(3))
    op()
    pycomm.shutdown()
    with pytest.raises(pycomm.Aborted, match="shut down"):
        op()
