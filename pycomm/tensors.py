"""Arrays of every kind. The engine takes torch tensors, objects with the buffer protocol and CUDA arrays;
this file adds DLPack and makes results of the kind that was passed in."""

from __future__ import annotations

import contextlib
import importlib
import math
from typing import Any

import numpy as np

from pycomm.errors import InvalidArgument

# What people and libraries call the dtypes, and what the engine does.
DTYPES = {
    "float64": "f64",
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "int64": "i64",
    "int32": "i32",
    "uint8": "u8",
    "int8": "i8",
}


def is_torch(x: Any) -> bool:
    """Whether x is a torch tensor, without importing torch."""
    return hasattr(x, "data_ptr") and hasattr(x, "new_empty")


def is_cuda_array(x: Any) -> bool:
    """Whether x is an array on a card that is no tensor: CuPy's, Numba's."""
    return hasattr(x, "__cuda_array_interface__") and not is_torch(x)


def as_memory(x: Any) -> Any:
    """`x` itself where the engine can take it, else a NumPy view of it by DLPack (which copies nothing)."""
    if x is None or isinstance(x, np.ndarray) or is_torch(x) or not hasattr(x, "__dlpack__"):
        return x
    if is_cuda_array(x):
        return x
    return np.from_dlpack(x)


def new_like(x: Any, shape: tuple[int, ...]) -> Any:
    """An uninitialised array of x's kind and dtype: a tensor for a tensor, CuPy's on the card of an array on
    one, else a NumPy array."""
    if is_torch(x):
        return x.new_empty(shape)
    if is_cuda_array(x):
        cupy: Any = importlib.import_module("cupy")
        with cupy.asarray(x).device:
            return cupy.empty(shape, dtype=x.dtype)
    return np.empty(shape, dtype=np.asarray(x).dtype)


def empty_on(memory: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """A tensor for a torch dtype, else a NumPy array, that lies in `memory` and keeps it; None: memory of its
    own."""
    if type(dtype).__module__ == "torch":
        import torch

        flat = (
            torch.frombuffer(memory, dtype=dtype) if memory is not None else torch.empty(shape, dtype=dtype)
        )
        return flat.reshape(shape)
    return np.empty(shape, dtype) if memory is None else np.frombuffer(memory, dtype).reshape(shape)


def item_bytes(dtype: Any) -> int:
    """The size of an element of a torch or NumPy dtype."""
    return int(dtype.itemsize if type(dtype).__module__ == "torch" else np.dtype(dtype).itemsize)


def shape_of(x: Any) -> tuple[int, ...]:
    """The shape of a tensor, an array or a buffer."""
    return tuple(x.shape) if hasattr(x, "shape") else np.asarray(x).shape


def count_of(x: Any) -> int:
    """The number of elements."""
    return math.prod(shape_of(x))


def part_count(count: int, parts: int, part: int) -> int:
    """How many elements part `part` has when `count` are cut as numpy.array_split cuts them."""
    return count // parts + (1 if part < count % parts else 0)


def nbytes_of(x: Any) -> int:
    """The size of the elements in bytes."""
    return int(x.nbytes) if hasattr(x, "nbytes") else memoryview(x).nbytes


def dtype_name(dtype: Any, what: str) -> str:
    """ "float32" for that, torch.float32, numpy.float32, ... Raises InvalidArgument, about `what`, for one
    that the engine has not."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        with contextlib.suppress(TypeError):
            name = np.dtype(dtype).name
    if name not in DTYPES:
        raise InvalidArgument(f"{what} has dtype {dtype}; expected one of {', '.join(DTYPES)}")
    return name
