"""ZeRO-1: the optimizer's state is sharded (trainer/zero.py)."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from pycomm import Communicator
from trainer.strategy import STRATEGIES, Strategy, Wire
from trainer.zero import check, of_wire


@STRATEGIES.register("zero1", check=partial(check, stage=1))
def zero1(
    model: nn.Module,
    comm: Communicator,
    optimizer: torch.optim.Optimizer,
    wire: Wire,
    share_params: bool = False,
) -> Strategy:
    return of_wire(model, comm, optimizer, wire, stage=1, share_params=share_params)
