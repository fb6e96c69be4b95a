from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import evaluate as module
from trainer.data import CLASSIFICATION
from trainer.evaluate import evaluate


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("count", [1, 3, 103])
def test_every_sample_counts_once(size: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 10)
    torch.manual_seed(count)
    model = torch.nn.Linear(4, 3)
    inputs, targets = torch.randn(count, 4), torch.randint(3, (count,))
    outputs = model(inputs)

    def rank(comm: Communicator) -> dict[str, float]:
        return evaluate(model, CLASSIFICATION, inputs, targets, comm)

    results = run_threads(size, rank)
    assert all(result == results[0] for result in results)
    assert results[0]["count"] == count
    assert results[0]["accuracy"] == (outputs.argmax(1) == targets).sum().item() / count
    assert results[0]["loss"] == pytest.approx(functional.cross_entropy(outputs, targets).item(), rel=1e-6)


def test_evaluation_leaves_the_mode_and_the_gradients_as_they_were() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    before = model[1].running_mean.clone()
    arguments = (model, CLASSIFICATION, torch.randn(5, 4), torch.zeros(5, dtype=torch.long))
    run_threads(1, lambda comm: evaluate(*arguments, comm))
    assert model.training
    assert torch.equal(model[1].running_mean, before)
    assert model[0].weight.grad is None
