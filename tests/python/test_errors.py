"""What cannot be served is refused before anything moves, with the reason, and the communicator goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import pycomm
from pycomm import Communicator, InvalidArgument
from pycomm.testing import run_threads

pytestmark = pytest.mark.timeout(60)


def ones(count: int = 4, dtype: Any = np.float32) -> Any:
    return np.ones(count, dtype)


def read_only() -> Any:
    array = ones()
    array.flags.writeable = False
    return array


def overlapping(comm: Communicator) -> None:
    memory = ones(6)
    comm.all_reduce(memory[:4], out=memory[1:5])


REFUSED: dict[str, tuple[Callable[[Communicator], Any], str]] = {
    "unknown op": (lambda c: c.all_reduce(ones(), op="mean"), "'mean'.*sum, prod, min, max, avg"),
    "unknown codec": (lambda c: c.all_reduce(ones(), codec="zip"), "'zip'.*bf16.*fp16.*none"),
    "unknown algorithm": (
        lambda c: c.all_reduce(ones(), algorithm="fast"),
        "'fast' for all_reduce.*direct.*recursive_doubling, ring",
    ),
    "algorithm of another collective": (
        lambda c: c.all_reduce(ones(), algorithm="binomial"),
        "'binomial' for all_reduce",
    ),
    "algorithm that rounds differently on the ranks": (
        lambda c: c.all_reduce(ones(), algorithm="mapped", codec="fp16"),
        "mapped cannot.*codec fp16.*these can: .*ring",
    ),
    "torch dtype": (
        lambda c: c.all_reduce(torch.ones(3, dtype=torch.bool)),
        r"torch\.bool; expected torch\.float64",
    ),
    "NumPy dtype": (lambda c: c.all_reduce(ones(3, np.uint16)), "'H'; expected float64"),
    "foreign byte order": (lambda c: c.all_reduce(ones(3, ">f4")), "native byte order"),
    "NumPy strides": (lambda c: c.all_reduce(np.ones((3, 3))[:, 1]), "not contiguous"),
    "Fortran order": (
        lambda c: c.all_reduce(np.asfortranarray(np.ones((3, 3)))),
        "not contiguous in C order",
    ),
    "torch strides": (lambda c: c.all_reduce(torch.ones(3, 3).T), "not contiguous"),
    "another device": (lambda c: c.all_reduce(torch.empty(3, device="meta")), "device meta; expected cpu"),
    "a list": (lambda c: c.all_reduce([1.0, 2.0]), "is a list; expected"),
    "nothing": (lambda c: c.all_reduce(None), "expected an array"),
    "read-only array": (lambda c: c.all_reduce(read_only()), "x is read-only"),
    "read-only bytes": (lambda c: c.broadcast(b"abcd"), "x is read-only"),
    "read-only out": (lambda c: c.all_reduce(ones(), out=read_only()), "out is read-only"),
    "read-only received": (lambda c: c.recv(read_only(), 1 - c.rank), "x is read-only"),
    "out of another count": (
        lambda c: c.all_reduce(ones(), out=ones(5)),
        "all_reduce: out has 5 elements; expected 4 on rank . of 2",
    ),
    "out of another dtype": (lambda c: c.all_reduce(ones(), out=ones(4, np.float64)), "f32 and out is f64"),
    "overlapping out": (overlapping, "overlap"),
    "part of another count": (
        lambda c: c.reduce_scatter(ones(5), out=ones(5)),
        "reduce_scatter: out has 5 elements; expected [23] on rank . of 2",
    ),
    "gathered from another count": (
        lambda c: c.all_gather(ones(4), out=ones(5)),
        "all_gather: the input has 4 elements; expected [23] on rank . of 2",
    ),
    "root too high": (lambda c: c.broadcast(ones(), root=2), "root is 2; expected a rank from 0 to 1"),
    "root below zero": (lambda c: c.broadcast(ones(), root=-1), "root is -1"),
    "peer too high": (lambda c: c.send(ones(), 7), "peer is 7; expected a rank from 0 to 1"),
    "itself as peer": (lambda c: c.send(ones(), c.rank), "with itself"),
    "itself as source": (lambda c: c.recv(ones(), c.rank), "with itself"),
    "no time": (lambda c: c.barrier(timeout=0), "timeout is 0"),
    "negative time": (lambda c: c.barrier(timeout=-1), "timeout is -1"),
    "time that is no number": (lambda c: c.barrier(timeout=float("nan")), "timeout is nan"),
    "scale of integers": (lambda c: c.all_reduce(ones(3, np.int32), scale=0.5), "scale 0.5.*i32"),
    "scale of a maximum": (lambda c: c.all_reduce(ones(), op="max", scale=0.5), "scale 0.5 with op max"),
    "scale that is no number": (lambda c: c.all_reduce(ones(), scale=float("nan")), "scale is nan"),
    "infinite scale": (lambda c: c.all_reduce(ones(), scale=float("inf")), "scale is inf"),
    "codec for integers": (lambda c: c.all_reduce(ones(3, np.int64), codec="fp16"), "codec fp16.*i64"),
    "codec for 16 bits": (lambda c: c.all_reduce(ones(3, np.float16), codec="bf16"), "codec bf16.*f16"),
    "codec for a minimum": (lambda c: c.all_reduce(ones(), op="min", codec="fp16"), "codec fp16 with op min"),
    "negative color": (lambda c: c.split(-1), "color is -1"),
    "waiting for a negative time": (lambda c: c.all_reduce_async(ones()).wait(-1), "timeout is -1"),
    "waiting for no number": (lambda c: c.all_reduce_async(ones()).wait(float("nan")), "timeout is nan"),
    "waiting for nothing": (lambda c: c.all_gather(None), "expected an array"),
}


def test_an_argument_of_another_type_is_named() -> None:
    def rank(comm: Communicator) -> None:
        with pytest.raises(TypeError, match="op is 3: an object of another type was expected"):
            comm.all_reduce(ones(), op=3)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="root is 'zero'"):
            comm.broadcast(ones(), root="zero")  # type: ignore[arg-type]

    run_threads(2, rank)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_reason_and_nothing_moves(name: str) -> None:
    call, words = REFUSED[name]

    def rank(comm: Communicator) -> list[float]:
        with pytest.raises(InvalidArgument, match=words):
            call(comm)
        assert comm.broken is None
        return comm.all_reduce(ones()).tolist()

    assert run_threads(2, rank) == [[2.0] * 4] * 2


def test_refused_on_one_rank_alone_leaves_the_others_untouched() -> None:
    def rank(comm: Communicator) -> float:
        if comm.rank == 0:
            for call, _ in REFUSED.values():
                if call not in (
                    REFUSED["waiting for a negative time"][0],
                    REFUSED["waiting for no number"][0],
                ):
                    with pytest.raises(InvalidArgument):
                        call(comm)
        return float(comm.all_reduce(ones())[0])

    assert run_threads(2, rank) == [2.0, 2.0]


def test_an_argument_is_an_argument_error_of_python_too() -> None:
    assert issubclass(InvalidArgument, ValueError)
    assert issubclass(pycomm.Timeout, TimeoutError)
    for error in (
        pycomm.InvalidArgument,
        pycomm.TransportError,
        pycomm.Timeout,
        pycomm.Aborted,
        pycomm.MismatchError,
    ):
        assert issubclass(error, pycomm.PycommError)


def test_an_unknown_transport_lists_those_that_exist() -> None:
    with pytest.raises(
        InvalidArgument, match=r"transport 'carrier_pigeon': unknown; there is .*inproc, .*mpi"
    ):
        run_threads(2, lambda comm: None, transport="carrier_pigeon")


def test_a_transport_that_cannot_work_here_says_why() -> None:
    with pytest.raises(pycomm.TransportError, match=r"no transport to rank \d; mpi: "):
        run_threads(2, lambda comm: None, transport="mpi")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("PYCOMM_SEGMENT_BYTES", "lots", "PYCOMM_SEGMENT_BYTES is 'lots'; expected a whole number"),
        ("PYCOMM_WINDOW", "-1", "PYCOMM_WINDOW is '-1'"),
        ("PYCOMM_TIMEOUT_S", "0", "PYCOMM_TIMEOUT_S is '0'"),
        ("PYCOMM_IN_FLIGHT", "0", "PYCOMM_IN_FLIGHT is '0'; expected a whole number from 1"),
        ("PYCOMM_TRANSPORTS", "inproc,smoke", "transport 'smoke'; known"),
    ],
)
def test_a_wrong_setting_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidArgument, match=words):
        run_threads(2, lambda comm: None)


# ---- operations that fail in flight


def test_timeout_names_collective_peer_and_stage_and_breaks_both_ranks() -> None:
    late = threading.Event()

    def rank(comm: Communicator) -> str:
        if comm.rank == 1:
            assert late.wait(30)
            with pytest.raises(pycomm.Timeout) as caught:
                comm.all_reduce(ones(1000), algorithm="ring")
            return str(caught.value)
        with pytest.raises(pycomm.Timeout) as caught:
            comm.all_reduce(ones(1000), algorithm="ring", timeout=0.3)
        with pytest.raises(pycomm.Timeout) as later:
            comm.barrier()
        assert str(later.value) == str(caught.value) == str(comm.broken)
        late.set()
        return str(caught.value)

    first, second = run_threads(2, rank)
    assert first == second  # the first cause, word for word
    for part in (
        "all_reduce(f32 x 1000",
        "all_reduce:ring",
        "rank 0",
        "no end within the timeout of 0.3 s",
        "recv from rank 1 in stage 1 of 2",
    ):
        assert part in first


def test_the_default_timeout_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCOMM_TIMEOUT_S", "0.2")

    def rank(comm: Communicator) -> None:
        if comm.rank == 0:
            comm.barrier()

    with pytest.raises(pycomm.PycommError, match=r"no end within the timeout of 0.2 s|has left"):
        run_threads(2, rank)


def test_abort_wakes_who_waits_and_names_the_reason() -> None:
    def rank(comm: Communicator) -> str:
        if comm.rank == 1:
            comm.abort("the disk is full")
        with pytest.raises(pycomm.Aborted) as caught:
            comm.barrier()
        return str(caught.value)

    for message in run_threads(3, rank):
        assert "the disk is full" in message


def test_a_rank_that_leaves_is_missed_long_before_the_deadline() -> None:
    def rank(comm: Communicator) -> None:
        comm.barrier()
        if comm.rank == 0:
            with pytest.raises(pycomm.Aborted, match="rank 1 has left"):
                comm.all_reduce(ones(), timeout=50)

    run_threads(2, rank, timeout=20)


def test_memory_of_a_failed_operation_is_released_once_nobody_can_write_to_it() -> None:
    import gc
    import weakref

    def rank(comm: Communicator) -> bool:
        tensor = torch.ones(10)
        alive = weakref.ref(tensor)
        if comm.rank == 0:
            with pytest.raises(pycomm.Timeout):
                comm.all_reduce(tensor, algorithm="ring", timeout=0.2)
        else:
            with pytest.raises(pycomm.Timeout):
                comm.recv(tensor, 0, timeout=30)
        del tensor
        gc.collect()
        with pytest.raises(pycomm.Timeout):
            comm.barrier()
        return alive() is None

    assert run_threads(2, rank, transport="inproc") == [True, True]


def test_mapped_memory_of_a_failed_operation_stays_while_a_peer_may_write_to_it() -> None:
    """A peer that has passed the first meeting stores to our memory until the last one."""
    import gc
    import weakref

    posted, passed = threading.Event(), threading.Event()

    def rank(comm: Communicator) -> Any:
        tensor = torch.ones(10)
        alive = weakref.ref(tensor)
        work = comm.all_reduce_async(tensor, algorithm="mapped")
        if comm.rank == 0:
            with pytest.raises(pycomm.Timeout):
                work.wait(0.1)  # tells rank 1 where the tensor is
            posted.set()
            assert passed.wait(30)
            comm.abort("enough")
            with pytest.raises(pycomm.Aborted):
                work.wait()
        else:
            assert posted.wait(30)
            with pytest.raises(pycomm.Timeout):
                work.wait(0.1)  # past the first meeting, and waits in the second
            passed.set()
            with pytest.raises(pycomm.Aborted):
                work.wait()
        del tensor, work
        gc.collect()
        with pytest.raises(pycomm.Aborted):
            comm.barrier()
        return alive() is not None

    assert run_threads(2, rank, transport="inproc_mapped")[0]
