"""`comm.empty`: arrays that peers address, where a transport has such memory; ordinary ones elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import pycomm
from pycomm import Communicator, InvalidArgument
from pycomm.testing import run_threads

TRANSPORTS = ["inproc", "inproc_mapped"]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("dtype", [np.float64, "int8", torch.bfloat16, torch.int32], ids=str)
def test_the_dtype_decides_the_kind_and_the_array_works(transport: str, size: int, dtype: Any) -> None:
    def body(comm: Communicator) -> None:
        x = comm.empty((5, 2), dtype)
        assert isinstance(x, torch.Tensor if isinstance(dtype, torch.dtype) else np.ndarray)
        assert tuple(x.shape) == (5, 2)
        assert x.dtype == (dtype if isinstance(dtype, torch.dtype) else np.dtype(dtype))
        x[:] = comm.rank + 1
        comm.all_reduce(x)
        assert (x == size * (size + 1) // 2).all()

    run_threads(size, body, transport=transport)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("shape", [0, (2, 0, 3), ()], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, torch.float32], ids=str)
def test_shapes_without_length(transport: str, shape: Any, dtype: Any) -> None:
    shapes = run_threads(2, lambda comm: tuple(comm.empty(shape, dtype).shape), transport=transport)
    assert shapes == [(0,) if shape == 0 else shape] * 2


def test_memory_outlives_the_world() -> None:
    def body(comm: Communicator) -> Any:
        x = comm.empty(1000, np.int64)
        x[:] = comm.rank
        return x

    for rank, x in enumerate(run_threads(2, body, transport="inproc_mapped")):
        assert (x == rank).all()


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"shape is \(3, -1\); expected lengths of 0 or more"):
        run_threads(1, lambda comm: comm.empty((3, -1)))


def test_without_a_launcher_it_is_ordinary_memory() -> None:
    comm = pycomm.init()
    try:
        assert comm.empty(3).flags.owndata
    finally:
        pycomm.shutdown()
