"""torch.distributed on gloo, beside MPI: the group that the gloo contenders share."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from bench.ranks import Ranks, own_address

LOOPBACK = "127.0.0.1"


def start(ranks: Ranks) -> Any:
    """The module torch.distributed with its default group started, once. Collective."""
    try:
        import torch.distributed as dist
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("gloo comes with torch: pip install torch", name=error.name) from error
    if dist.is_initialized():
        return dist
    address = LOOPBACK
    if ranks.comm.local_size == ranks.size:
        # Without it gloo looks up the host's name, which a container need not know.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    else:
        address = ranks.gather(own_address())[0]
    # Port 0: the store takes a free one, with no gap in which another may take it.
    make = partial(dist.TCPStore, address)  # type: ignore[attr-defined]
    mine = make(0, is_master=True, wait_for_workers=False) if ranks.rank == 0 else None
    port = ranks.gather(mine.port if mine else None)[0]
    store = mine or make(port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=ranks.rank, world_size=ranks.size)
    return dist


def stop() -> None:
    """Ends the group if it runs. Collective."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
