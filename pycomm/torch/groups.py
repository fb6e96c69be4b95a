"""From a process group that torch asks for to a communicator of the engine.

Torch makes a group by calling its members alone, while `Communicator.split` needs everyone: the members agree
through the group's store instead.
"""

from __future__ import annotations

import json
from typing import Any

import torch.distributed as dist

from pycomm import session
from pycomm.communicator import Communicator
from pycomm.errors import InvalidArgument
from pycomm.torch.process_group import PycommProcessGroup
from pycomm.torch.store import StoreExchange


def create(options: Any, backend_options: Any = None) -> PycommProcessGroup:
    """The factory that torch calls on every member of a new group, with its _DistributedBackendOptions.

    Raises InvalidArgument where torch's ranks are not the launcher's, Timeout where a rank does not come.
    """
    if backend_options is not None:
        raise InvalidArgument(
            f"pg_options is a {type(backend_options).__name__}; backend 'pycomm' takes none"
        )
    rank, size = int(options.group_rank), int(options.group_size)
    members = list(options.global_ranks_in_group)  # none: the default group
    exchange = StoreExchange(options.store, rank, size, members)
    world = _world(rank, size, members, exchange)
    timeout_s = options.timeout.total_seconds()
    communicator = world.subgroup(
        members or range(size),
        lambda value: [json.loads(text) for text in exchange(json.dumps(value).encode(), timeout_s)],
    )
    return PycommProcessGroup(communicator, options.store, options.timeout)


def _world(rank: int, size: int, members: list[int], exchange: StoreExchange) -> Communicator:
    """The communicator of all ranks; started where it is not."""
    # Slurm's variables stand in its allocations whatever starts the processes.
    by_torchrun = dist.is_torchelastic_launched() and not members
    by_launcher = session.under_launcher() and not by_torchrun
    if session.is_initialized() or by_launcher or (size == 1 and not members):
        world = session.init()
    elif members:
        raise InvalidArgument(
            "backend 'pycomm' for some ranks needs the connections of all: make it the backend of the "
            "default group, or call pycomm.init() before"
        )
    else:
        world = session.init_over(rank, size, exchange)
    given = (members[rank], world.size) if members else (rank, size)
    if given != (world.rank, world.size):
        raise InvalidArgument(
            f"torch says rank {given[0]} of {given[1]}, pycomm rank {world.rank} of {world.size}: leave rank "
            "and world_size out of init_process_group, or give it the launcher's"
        )
    return world
