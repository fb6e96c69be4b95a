"""A backend of torch.distributed: programs written for it run on pycomm's engine, as they are.

    import pycomm.torch                                   # registers the backend
    torch.distributed.init_process_group("pycomm")        # under mpirun, srun or torchrun

Under an MPI launcher the ranks are MPI's; under torchrun they meet in its store and talk over shared memory,
so they must be on one node. `python -m pycomm.launch -n 4 -m pycomm.torch.run script.py` needs no line of
ours in the script: it imports this and makes "pycomm" the default backend for tensors on the CPU.

What each call promises is in pycomm/torch/process_group.py, how a reduction of torch's becomes one of the
engine's in pycomm/torch/reductions.py. `ddp_hook` is a communication hook of DistributedDataParallel;
`fsdp_memory` lets FSDP2 communicate in memory that peers read where it lies.
"""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed import distributed_c10d

from pycomm.torch.fsdp import fsdp_memory
from pycomm.torch.groups import create
from pycomm.torch.hooks import DdpState, ddp_hook
from pycomm.torch.process_group import PycommProcessGroup
from pycomm.torch.work import PycommWork

__all__ = ["DdpState", "PycommProcessGroup", "PycommWork", "ddp_hook", "fsdp_memory"]

BACKEND = "pycomm"

if not dist.is_available():  # some builds of torch lack it
    raise ImportError("this torch was built without torch.distributed")
dist.Backend.register_backend(BACKEND, create, extended_api=True, devices=["cpu"])
# Torch (2.15 does) hooks its flight recorder onto the backends that C++ made of every group but of those that
# are listed as their own recorders, and fails where, as here, the group is itself the backend.
recording: set[str] = getattr(distributed_c10d, "_FR_SELF_RECORDING_BACKENDS", set())
recording.add(BACKEND)
