from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import evaluate as module
from trainer.data import CLASSIFICATION, NEXT_BYTE
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
        return evaluate(model, CLASSIFICATION, (inputs, targets), comm)

    results = run_threads(size, rank)
    assert all(result == results[0] for result in results)
    assert results[0]["count"] == count
    assert results[0]["accuracy"] == (outputs.argmax(1) == targets).sum().item() / count
    assert results[0]["loss"] == pytest.approx(functional.cross_entropy(outputs, targets).item(), rel=1e-6)


def test_evaluation_leaves_the_mode_and_the_gradients_as_they_were() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    before = model[1].running_mean.clone()
    split = (torch.randn(5, 4), torch.zeros(5, dtype=torch.long))
    run_threads(1, lambda comm: evaluate(model, CLASSIFICATION, split, comm))
    assert model.training
    assert torch.equal(model[1].running_mean, before)
    assert model[0].weight.grad is None


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_mean_of_text_is_over_tokens(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 10)
    torch.manual_seed(0)
    model = torch.nn.Embedding(7, 7)
    inputs, targets = torch.randint(7, (2, 3, 4))
    expected = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).item()
    for result in run_threads(size, lambda comm: evaluate(model, NEXT_BYTE, (inputs, targets), comm)):
        assert result["count"] == 12
        assert result["loss"] == pytest.approx(expected, rel=1e-6)
        assert result["bits_per_byte"] == pytest.approx(expected / math.log(2), rel=1e-6)


def test_no_forward_takes_more_tokens_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 10)
    seen = []

    class Watched(torch.nn.Embedding):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            seen.append(tokens.numel())
            return super().forward(tokens)

    split = tuple(torch.zeros(2, 6, 4, dtype=torch.long))
    run_threads(1, lambda comm: evaluate(Watched(7, 7), NEXT_BYTE, split, comm))
    assert seen == [8, 8, 8]


@pytest.mark.parametrize("count", [3, 1003])
def test_the_bits_depend_on_the_shards_alone(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 50)
    torch.manual_seed(count)
    model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.ReLU(), torch.nn.Linear(30, 3))
    split = (torch.randn(count, 40), torch.randint(3, (count,)))

    def results(size: int, shards: int | None) -> set[tuple[float, ...]]:
        def rank(comm: Communicator) -> tuple[float, ...]:
            return tuple(evaluate(model, CLASSIFICATION, split, comm, shards).values())

        return set(run_threads(size, rank))

    assert len({value for size in (1, 2, 4, 8) for value in results(size, 8)}) == 1
    assert results(8, 8) == results(8, None)
