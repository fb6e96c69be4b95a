"""The variables by which other libraries learn who they are: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
and MASTER_ADDR and MASTER_PORT, where rank 0 may listen. `init_process_group` of torch and what stands on it
(Lightning, Accelerate) read them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

from pycomm.communicator import Communicator

# Set beside them: they are ours, and say nothing about processes that this one starts.
_MARK = "PYCOMM_EXPORTED"
_MASTER = ("MASTER_ADDR", "MASTER_PORT")


def are_ours() -> bool:
    """Whether this process, or one that started it, exported them."""
    return _MARK in os.environ


def export(world: Communicator, gather: Callable[[Any], list[Any]]) -> None:
    """Set them for this process and those it starts. Collective; a MASTER_ADDR and MASTER_PORT that were
    given stay.

    gather: gives everyone's values, by rank; not the world's, whose operations are the user's.
    """
    given = [os.environ.get(name) for name in _MASTER]
    masters = gather(None if are_ours() or None in given else given)
    mine = _free_address(world.local_size == world.size) if world.rank == 0 and not all(masters) else None
    os.environ.update(zip(_MASTER, gather(mine)[0] or masters[0], strict=True))
    os.environ |= {
        _MARK: "1",
        "RANK": str(world.rank),
        "WORLD_SIZE": str(world.size),
        "LOCAL_RANK": str(world.local_rank),
        "LOCAL_WORLD_SIZE": str(world.local_size),
    }


def _free_address(one_node: bool) -> list[str]:
    """Where this process may listen: a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ["127.0.0.1" if one_node else socket.gethostname(), str(probe.getsockname()[1])]
