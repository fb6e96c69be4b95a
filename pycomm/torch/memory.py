"""Tensors as the engine wants them: contiguous, on the CPU, of a dtype it knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pycomm.errors import InvalidArgument
from pycomm.torch.reductions import NATIVE


def dense(tensor: Tensor) -> Tensor:
    """The tensor itself, or a contiguous copy of it. Raises InvalidArgument for what has no such memory."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise InvalidArgument(
            f"a {tensor.layout} tensor on {tensor.device}; backend 'pycomm' takes dense tensors on cpu"
        )
    return tensor.detach().resolve_conj().resolve_neg().contiguous()


def room_for(tensor: Tensor) -> Tensor:
    """Where a result for `tensor` is written: the tensor itself, or contiguous memory of its size."""
    plain = tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()
    return dense(tensor) if plain else torch.empty_like(dense(tensor))


def copy_back(memory: Tensor, tensor: Tensor) -> Callable[[], None] | None:
    """What brings a result from where it was written into the tensor; None where it is there."""
    if memory.data_ptr() == tensor.data_ptr() and memory.stride() == tensor.stride():
        return None
    return lambda: put(memory, tensor)


def put(values: Tensor, tensor: Tensor) -> None:
    """Overwrites the tensor with as many values."""
    tensor.detach().copy_(values.view(tensor.shape))


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """All elements of tensors of one dtype, one after the other, in new memory."""
    return torch.cat([dense(tensor).reshape(-1) for tensor in tensors])


def cut(memory: Tensor, tensors: Sequence[Tensor]) -> None:
    """The reverse: hands the elements out again."""
    begin = 0
    for tensor in tensors:
        put(memory[begin : begin + tensor.numel()], tensor)
        begin += tensor.numel()


def moved(memory: Tensor) -> Tensor:
    """A contiguous tensor as it travels where nothing is computed: flat, and as bytes if its dtype is not one
    of the engine's. Shares memory."""
    flat = memory.reshape(-1)
    return flat if flat.dtype in NATIVE else flat.view(torch.uint8)


def bytes_per_element(tensor: Tensor) -> int:
    """How many elements an element becomes in moved()."""
    return 1 if tensor.dtype in NATIVE else tensor.element_size()
