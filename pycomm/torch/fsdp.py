"""FSDP2's all-gathers and reduce-scatters in communication memory, which peers read where it lies.

FSDP2 asks for memory at every unshard and drops it after copying out. New communication memory costs page
faults on every rank that maps it, so what was dropped is kept here, by size, and given again.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pycomm.communicator import Communicator
from pycomm.errors import InvalidArgument
from pycomm.torch.process_group import PycommProcessGroup

# Torch 2.13 gave them new names.
_all_gather: Any = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


def fsdp_memory(model: nn.Module, group: Any = None) -> None:
    """Let every module of `model` that `fully_shard` was called on communicate in communication memory. Does
    not communicate; call it after the last fully_shard.

        fully_shard(model)
        pycomm.torch.fsdp_memory(model)

    group: a process group of backend "pycomm"; None is the default group. It lends the memory: collectives
    may be those of other groups. Memory is kept until the model is gone, as much as was in use at once.

    Raises InvalidArgument where the group is of another backend, no module is FSDP2's, or this torch (before
    2.9) does not let a program choose the memory.
    """
    group = group or dist.group.WORLD
    if not isinstance(group, PycommProcessGroup):
        raise InvalidArgument(
            f"fsdp_memory: the group is a {type(group).__name__}; expected backend 'pycomm'"
        )
    chosen: list[Any] = [module for module in model.modules() if hasattr(module, "set_custom_all_gather")]
    if not chosen:
        raise InvalidArgument(
            f"fsdp_memory: no module of the {type(model).__name__} lets its memory be chosen: expected "
            "fully_shard() before, and torch 2.9 or newer"
        )
    pool = Pool(group.communicator)
    for module in chosen:
        module.set_custom_all_gather(AllGather(pool))
        module.set_custom_reduce_scatter(ReduceScatter(pool))


class Pool:
    """Communication memory that comes back when the last tensor in it is gone. Not thread-safe, but that any
    thread may drop a tensor."""

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator
        self._free: dict[int, list[Any]] = {}  # by bytes

    def take(self, count: int, dtype: torch.dtype) -> Tensor:
        """Elements of any value."""
        nbytes = count * dtype.itemsize
        if not nbytes:
            return torch.empty(0, dtype=dtype)
        free = self._free.setdefault(nbytes, [])
        memory = free.pop() if free else self._communicator.empty(nbytes, "uint8")
        lent = memoryview(memory)  # torch keeps it as long as it has a tensor there
        weakref.finalize(lent, free.append, memory).atexit = False
        return torch.frombuffer(lent, dtype=dtype)


class Allocates:
    """What torch asks first: where the result of a collective, or what goes into it, lies."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        if device.type != "cpu":
            return torch.empty(*size, dtype=dtype, device=device)
        return self._pool.take(math.prod(size), dtype).view(*size)


class AllGather(Allocates):
    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False
    ) -> Any:
        return _all_gather(output_tensor, input_tensor, group=group, async_op=async_op)


class ReduceScatter(Allocates):
    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
    ) -> Any:
        return _reduce_scatter(output_tensor, input_tensor, op=op, group=group, async_op=async_op)
