"""ZeRO-2: gradients are sharded too (trainer/zero.py)."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from pycomm import Communicator
from trainer.memory import POOL
from trainer.strategy import STRATEGIES, Strategy, Wire
from trainer.zero import check, of_wire


@STRATEGIES.register("zero2", check=partial(check, stage=2))
def zero2(
    model: nn.Module,
    comm: Communicator,
    optimizer: torch.optim.Optimizer,
    wire: Wire,
    pool: int = POOL,
    share_params: bool = False,
) -> Strategy:
    return of_wire(model, comm, optimizer, wire, stage=2, pool=pool, share_params=share_params)
