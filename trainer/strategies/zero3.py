"""ZeRO-3: parameters are sharded too, and gathered block by block (trainer/zero.py)."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from pycomm import Communicator
from trainer.memory import POOL
from trainer.strategy import STRATEGIES, Strategy, Wire
from trainer.zero import check, of_wire


@STRATEGIES.register("zero3", check=partial(check, stage=3))
def zero3(
    model: nn.Module,
    comm: Communicator,
    optimizer: torch.optim.Optimizer,
    wire: Wire,
    pool: int = POOL,
    blocks: list[str] | None = None,
) -> Strategy:
    """`blocks`: names of modules' classes."""
    return of_wire(model, comm, optimizer, wire, stage=3, pool=pool, blocks=blocks)
