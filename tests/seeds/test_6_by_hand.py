"""One step of logistic regression that can be done by hand: W = [1, 0], b = 0, loss ½ Σ (f - y)², rate 0.1.

With f = sigmoid(W·x + b): dW = Σ (f - y) f (1 - f) x, db = Σ (f - y) f (1 - f). The loss is a sum, so the
gradients of the ranks are added and divided by nothing.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pycomm import Communicator
from pycomm.testing import run_threads
from tests.seeds.table import Table
from trainer import DataParallel

POINTS = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]])
TARGETS = torch.tensor([[1.0], [0], [1], [0]])
LAST_DIGIT = 1e-6  # the numbers by hand have six decimals
EXPECTED = {
    "dW": [-0.105754, 0.072123],
    "db": [0.144246],
    "W": [1.010575, -0.007212],
    "b": [-0.014425],
}


def one_step(comm: Communicator) -> dict[str, list[float]]:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0]]))
        model.bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    points, targets = (part.tensor_split(comm.size)[comm.rank] for part in (POINTS, TARGETS))
    with DataParallel(model, comm, optimizer, loss_reduction="sum", global_count=1):
        (0.5 * (model(points).sigmoid() - targets) ** 2).sum().backward()
        optimizer.step()
    shown = {"dW": model.weight.grad, "db": model.bias.grad, "W": model.weight, "b": model.bias}
    return {name: tensor.flatten().tolist() for name, tensor in shown.items()}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_one_step_gives_the_numbers_by_hand(ranks: int, table: Table) -> None:
    found = run_threads(ranks, one_step)
    assert all(each == found[0] for each in found)
    for name, expected in EXPECTED.items():
        for index, (want, have) in enumerate(zip(expected, found[0][name], strict=True)):
            shown = f"{name}[{index}]" if len(expected) > 1 else name
            table.near(shown, want, have, within=LAST_DIGIT, ranks=ranks)
