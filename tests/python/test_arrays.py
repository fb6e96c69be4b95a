"""Arrays of every kind: torch, NumPy, buffers, DLPack; what comes back is of the kind that went in."""

from __future__ import annotations

import array
import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import pycomm
from pycomm import Communicator
from pycomm.testing import run_threads

pytestmark = pytest.mark.timeout(60)

TORCH = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.int8,
)
NUMPY = ("float64", "float32", "float16", "int64", "int32", "uint8", "int8")
SHAPES = ((), (0,), (1,), (5,), (2, 3), (2, 0, 4), (1, 1, 1, 7))


class DLPackOnly:
    """An array of a library that speaks DLPack and nothing else."""

    def __init__(self, held: Any) -> None:
        self._held = held

    def __dlpack__(self, **options: Any) -> Any:
        return self._held.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._held.__dlpack_device__()


def both(call: Callable[[Communicator], Any]) -> list[Any]:
    return run_threads(2, call)


@pytest.mark.parametrize("dtype", TORCH, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_torch(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    def rank(comm: Communicator) -> None:
        x = torch.full(shape, comm.rank + 1, dtype=dtype)
        assert comm.all_reduce(x) is x
        assert x.dtype == dtype and x.shape == shape and (x == 3).all()

        out = torch.empty_like(x)
        assert comm.all_reduce(x, out=out) is out and (out == 6).all() and (x == 3).all()

        part = comm.reduce_scatter(x)
        assert part.dtype == dtype and part.dim() == 1 and (part == 6).all()
        assert part.numel() == len(np.array_split(np.empty(x.numel()), 2)[comm.rank])

        whole = comm.all_gather(torch.full(shape, comm.rank, dtype=dtype))
        assert whole.dtype == dtype and whole.shape == ((2 * shape[0], *shape[1:]) if shape else (2,))
        half = whole.numel() // 2
        assert (whole.flatten()[:half] == 0).all() and (whole.flatten()[half:] == 1).all()

        y = torch.full(shape, comm.rank + 4, dtype=dtype)
        assert comm.broadcast(y, root=1) is y and (y == 5).all()
        if comm.rank == 0:
            comm.send(y, 1)
        else:
            assert (comm.recv(torch.zeros_like(y), 0) == 5).all()

    both(rank)


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numpy(dtype: str, shape: tuple[int, ...]) -> None:
    def rank(comm: Communicator) -> None:
        x = np.full(shape, comm.rank + 1, dtype)
        assert comm.all_reduce(x) is x and x.shape == shape and (x == 3).all()
        part = comm.reduce_scatter(x)
        assert isinstance(part, np.ndarray) and part.dtype == dtype
        assert part.shape == np.array_split(x.ravel(), 2)[comm.rank].shape and (part == 6).all()
        whole = comm.all_gather(np.full(shape, comm.rank, dtype))
        assert whole.dtype == dtype
        assert (
            whole == (np.concatenate([np.full(shape, r, dtype) for r in (0, 1)]) if shape else [0, 1])
        ).all()

    both(rank)


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (lambda: bytearray(b"\x01\x02\x03"), [2, 4, 6]),
        (lambda: array.array("d", [1, 2]), [2.0, 4.0]),
        (lambda: array.array("f", [1, 2]), [2.0, 4.0]),
        (lambda: array.array("i", [1, -2]), [2, -4]),
        (lambda: array.array("l", [1, -2]), [2, -4]),
        (lambda: array.array("q", [1, -2]), [2, -4]),
        (lambda: array.array("b", [1, -2]), [2, -4]),
        (lambda: memoryview(bytearray(b"\x01\x02\x03\x04"))[1:3], [4, 6]),
        (lambda: memoryview(bytearray(16)).cast("d"), [0.0, 0.0]),
        (lambda: (ctypes.c_double * 2)(1.0, 2.0), [2.0, 4.0]),
        (lambda: np.arange(12, dtype=np.float32)[3:7], [6.0, 8.0, 10.0, 12.0]),
    ],
    ids=[
        "bytearray",
        "array d",
        "array f",
        "array i",
        "array l",
        "array q",
        "array b",
        "slice",
        "cast",
        "ctypes",
        "part",
    ],
)
def test_buffers(make: Callable[[], Any], values: list[float]) -> None:
    def rank(comm: Communicator) -> list[float]:
        x = make()
        assert comm.all_reduce(x) is x
        return list(x)

    assert both(rank) == [values, values]


def test_dlpack_objects_are_written_in_place_and_yield_numpy_arrays() -> None:
    def rank(comm: Communicator) -> None:
        memory = np.arange(6, dtype=np.float32).reshape(2, 3)
        x = DLPackOnly(memory)
        assert comm.all_reduce(x) is x and (memory == 2 * np.arange(6).reshape(2, 3)).all()
        assert (
            comm.reduce_scatter(x).tolist()
            == (2 * memory.ravel())[3 * comm.rank : 3 * comm.rank + 3].tolist()
        )
        assert (comm.all_gather(x) == np.concatenate([memory, memory])).all()
        assert comm.reduce_scatter_async(x).wait().shape == (3,)
        assert comm.all_gather_async(x).wait().shape == (4, 3)
        target = DLPackOnly(np.zeros(6, np.float32))
        comm.all_reduce(x, out=target)
        assert (target._held == 2 * memory.ravel()).all()

    both(rank)


def test_a_tensor_of_dlpack_only_keeps_its_memory_until_done() -> None:
    def rank(comm: Communicator) -> None:
        memory = torch.ones(5000)
        work = comm.all_reduce_async(DLPackOnly(memory))
        work.wait()
        assert (memory == 2).all()

    both(rank)


def test_parameters_are_reached_through_detach() -> None:
    def rank(comm: Communicator) -> None:
        weight = torch.nn.Parameter(torch.full((3,), float(comm.rank)))
        comm.broadcast(weight.detach(), root=1)
        assert weight.requires_grad and weight.tolist() == [1.0, 1.0, 1.0]

    both(rank)


def test_tensors_that_share_memory_with_numpy() -> None:
    def rank(comm: Communicator) -> None:
        memory = np.ones(4, np.float32)
        comm.all_reduce(torch.from_numpy(memory))
        assert (memory == 2).all()

    both(rank)


def test_kinds_may_differ_between_ranks_and_between_input_and_out() -> None:
    def rank(comm: Communicator) -> None:
        x: Any = torch.ones(4) if comm.rank == 0 else np.ones(4, np.float32)
        comm.all_reduce(x)
        assert list(map(float, x)) == [2.0] * 4
        out = np.empty(4, np.float32)
        assert comm.all_reduce(torch.ones(4), out=out) is out and (out == 2).all()

    both(rank)


def test_gathering_without_out_wants_equal_shapes() -> None:
    def rank(comm: Communicator) -> None:
        with pytest.raises(pycomm.MismatchError, match=r"f64 x 4.*f64 x 6|f64 x 6.*f64 x 4"):
            comm.all_gather(np.ones(2 + comm.rank))
            comm.barrier()

    both(rank)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_uneven_parts_are_those_of_array_split(size: int) -> None:
    def rank(comm: Communicator) -> None:
        for count in range(8):
            x = np.arange(count, dtype=np.float64)
            mine = np.array_split(x, comm.size)[comm.rank]
            assert (comm.reduce_scatter(x) == comm.size * mine).all()
            out = np.empty(count)
            assert comm.all_gather(mine.copy(), out=out) is out and (out == x).all()

    run_threads(size, rank)


@pytest.mark.parametrize("size", [1, 3])
def test_results_on_one_rank_are_those_on_many(size: int) -> None:
    """Scale and op apply on a single rank too."""

    def rank(comm: Communicator) -> None:
        x = np.full(4, 6.0 if comm.rank == 0 else 0.0)
        assert comm.all_reduce(x.copy(), scale=0.5).tolist() == [3.0] * 4
        assert comm.all_reduce(x.copy(), op="avg").tolist() == [6.0 / comm.size] * 4
        assert comm.all_reduce(np.full(2, -7, np.int32), op="avg").tolist() == [-7, -7]
        half = comm.all_reduce(
            np.full(3, 1 + 2.0**-12, np.float32), codec="fp16", op="avg", algorithm="direct"
        )
        assert math.isclose(half[0], 1.0, rel_tol=2.0**-10)

    run_threads(size, rank)


def test_sums_of_sixteen_bits_do_not_overflow_before_they_are_scaled() -> None:
    def rank(comm: Communicator) -> None:
        x = torch.full((50,), 60000.0, dtype=torch.float16)
        assert (comm.all_reduce(x.clone(), op="avg") == 60000).all()
        assert torch.isinf(comm.all_reduce(x.clone())).all()
        wide = np.full(50, 60000.0, np.float32)
        assert (comm.all_reduce(wide.copy(), op="avg", codec="fp16") == 60000).all()
        assert np.isinf(comm.all_reduce(wide.copy(), codec="fp16")).all()

    run_threads(4, rank)


def test_flushed_denormals_of_the_caller_do_not_reach_the_sums() -> None:
    def rank(comm: Communicator) -> bool:
        bits = np.ones(20, np.int32)  # the smallest denormals
        torch.set_flush_denormal(True)
        try:
            comm.all_reduce(bits.view(np.float32))
            return bool((bits == 2).all())
        finally:
            torch.set_flush_denormal(False)

    assert both(rank) == [True, True]
