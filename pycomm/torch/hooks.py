"""A communication hook of DistributedDataParallel: buckets of gradients averaged on the engine, compressed if
asked."""

# Torch compares the annotations of a hook with its own classes, so they are not put off here.
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pycomm.errors import InvalidArgument
from pycomm.torch.process_group import PycommProcessGroup
from pycomm.torch.work import PycommWork


@dataclass(frozen=True)
class DdpState:
    """What `ddp_hook` is told.

    codec: "none", "fp16" or "bf16", how float32 and float64 gradients travel; sums are kept in float32 and
    each gradient is divided by the number of ranks before it is cast, so that a sum does not overflow.
    group: a process group of backend "pycomm"; None is the default group.
    """

    codec: str = "none"
    group: Any = None


def ddp_hook(
    state: DdpState | None,
    bucket: dist.GradBucket,  # type: ignore[name-defined]  # torch has no stub of it
) -> torch.futures.Future[Tensor]:
    """Average a bucket over the ranks. Does not block; the future is the bucket's buffer.

        model.register_comm_hook(pycomm.torch.DdpState(codec="fp16"), pycomm.torch.ddp_hook)

    Raises InvalidArgument where the group is of another backend.
    """
    state = state or DdpState()
    group = state.group or dist.group.WORLD
    if not isinstance(group, PycommProcessGroup):
        raise InvalidArgument(f"ddp_hook: the group is a {type(group).__name__}; expected backend 'pycomm'")
    buffer = bucket.buffer()
    wide = buffer.dtype in (torch.float32, torch.float64)
    pending = group.communicator.all_reduce_async(
        buffer, "avg", codec=state.codec if wide else None, timeout=group.timeout_s
    )
    return PycommWork([pending], [buffer]).get_future().then(lambda future: future.value()[0])
