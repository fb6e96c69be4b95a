"""k workers push (rate / mk) · Σ of m gradients, all at the same parameters, and a server subtracts each: one
step on the mean over mk samples.

Bit for bit where all numbers are exact: samples and parameters are small integers, k, m and the rate powers
of two, so that no product and no sum is rounded, in any order. Elsewhere to rounding.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pycomm import Communicator
from pycomm.testing import run_threads
from tests.seeds.table import Table
from trainer import DataParallel

FEATURES = 6


def problem(samples: int, *, exact: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and initial weights of a linear regression."""
    random = torch.Generator().manual_seed(8)
    shapes = (samples, FEATURES), (samples, 1), (1, FEATURES)
    if exact:
        inputs, targets, weights = (torch.randint(-4, 5, shape, generator=random) for shape in shapes)
        return inputs.float(), targets.float(), weights.float()
    inputs, targets, weights = (torch.randn(shape, generator=random) for shape in shapes)
    return inputs, targets, weights


def summed_gradient(weights: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """Of ½ Σ (w·x - y)²."""
    weights = weights.clone().requires_grad_()
    (0.5 * (inputs @ weights.T - targets) ** 2).sum().backward()
    return weights.grad


def pushes(comm: Communicator, rate: float, m: int, exact: bool) -> Tensor | None:
    """Rank 0 serves; the others compute at its parameters, and push once each. The server's result."""
    workers = comm.size - 1
    inputs, targets, weights = problem(m * workers, exact=exact)
    comm.broadcast(weights, root=0)
    push = torch.empty_like(weights)
    if comm.rank == 0:
        for worker in range(1, comm.size):
            weights -= comm.recv(push, worker)
        return weights
    mine = slice(m * (comm.rank - 1), m * comm.rank)
    push = rate / (m * workers) * summed_gradient(weights, inputs[mine], targets[mine])
    comm.send(push, 0)
    return None


def all_reduced(comm: Communicator, rate: float, m: int) -> Tensor:
    inputs, targets, weights = problem(m * comm.size, exact=True)
    model = nn.Linear(FEATURES, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    inputs, targets = (part.tensor_split(comm.size)[comm.rank] for part in (inputs, targets))
    with DataParallel(model, comm, optimizer, loss_reduction="sum", global_count=m * comm.size):
        (0.5 * (model(inputs) - targets) ** 2).sum().backward()
        optimizer.step()
    return model.weight.detach()


@pytest.mark.parametrize(("k", "m"), [(2, 4), (4, 8), (8, 1)])
def test_pushes_are_one_step_of_the_mean_bit_for_bit(k: int, m: int, table: Table) -> None:
    rate = 2.0**-5
    inputs, targets, weights = problem(m * k, exact=True)
    expected = weights - rate * (summed_gradient(weights, inputs, targets) / (m * k))
    pushed = run_threads(k + 1, pushes, rate, m, True)[0]
    reduced = run_threads(k, all_reduced, rate, m)
    assert not torch.equal(expected, weights)
    table.equal(
        f"k = {k} pushes of m = {m}: bits of one step", True, torch.equal(pushed, expected), ranks=k + 1
    )
    same = all(torch.equal(each, expected) for each in reduced)
    table.equal(f"k = {k} ranks of m = {m} all-reduced: bits", True, same, ranks=k)


@pytest.mark.parametrize(("k", "m"), [(3, 5), (5, 7)])
def test_pushes_are_one_step_of_the_mean_to_rounding(k: int, m: int, table: Table) -> None:
    rate = 0.1
    inputs, targets, weights = problem(m * k, exact=False)
    exact = summed_gradient(weights.double(), inputs.double(), targets.double())
    expected = weights.double() - rate * (exact / (m * k))
    pushed = run_threads(k + 1, pushes, rate, m, False)[0]
    assert pushed is not None
    off = (torch.linalg.norm(pushed - expected) / torch.linalg.norm(expected)).item()
    table.at_most(f"k = {k} pushes of m = {m}: beside one step", 1e-6, off, ranks=k + 1)
