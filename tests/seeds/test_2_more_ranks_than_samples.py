"""Five samples on five ranks, one each, and on six, one with none: each step is that of one process."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.seeds.table import Table
from tests.seeds.training import Training, difference, in_one_process, loss_difference, on_ranks

OPTIMIZERS = [partial(torch.optim.SGD, lr=0.1), partial(torch.optim.Adam, lr=0.01)]


@pytest.mark.parametrize("ranks", [5, 6])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: optimizer.func.__name__)
def test_every_step_is_that_of_one_process(ranks: int, optimizer: partial, table: Table) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    loss = partial(functional.mse_loss, reduction="sum")
    training = Training(
        torch.randn(5, 3), torch.randn(5, 2), model, loss, optimizer, global_batch=5, steps=20
    )
    expected, traces = in_one_process(training), on_ranks(training, ranks)
    held = sorted((len(trace.samples[0]) for trace in traces), reverse=True)
    name = optimizer.func.__name__
    table.equal("samples by rank", [1, 1, 1, 1, 1, 0][:ranks], held, ranks=ranks)
    table.at_most(
        f"{name}: parameters, worst of 20 steps", 1e-6, difference(traces[0], expected), ranks=ranks
    )
    table.at_most(
        f"{name}: losses, worst of 20 steps", 1e-6, loss_difference(traces[0], expected), ranks=ranks
    )
    assert all(torch.equal(trace.parameters[-1], traces[0].parameters[-1]) for trace in traces)
