"""The training loops in examples/ compute what one process computes, on any number of ranks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import pycomm
from examples import custom_loop, custom_trainer
from pycomm.testing import run_threads
from tests.helpers import ROOT, run


def small_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 1))


def one_process(program: Any, model: nn.Module, optimizer: Any, steps: int, end_of_step: Any) -> float:
    """The plain loop that the examples make parallel: the mean loss of whole batches."""
    for step in range(steps):
        x, y = program.data(step)
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x), y)
        loss.backward()
        end_of_step()
    return loss.item()


def assert_same(got: nn.Module, expected: nn.Module) -> None:
    for have, want in zip(got.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ranks", [1, 2, 3, 32])
def test_the_loop_by_hand_trains_what_one_process_trains(ranks: int) -> None:
    """Of 32 ranks two have no sample."""
    start, expected = small_model(), small_model()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1)
    wanted = one_process(custom_loop, expected, optimizer, custom_loop.STEPS, optimizer.step)

    def rank(comm: pycomm.Communicator) -> tuple[nn.Module, float]:
        model = copy.deepcopy(start)
        if comm.rank:
            for parameter in model.parameters():
                parameter.data.add_(1)  # as if it had drawn others
        return model, custom_loop.train(model, comm)

    for model, loss in run_threads(ranks, rank):
        assert_same(model, expected)
        assert loss == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize(("ranks", "later"), [(1, 3), (3, 2), (32, 1)])
def test_the_loop_of_parts_trains_what_one_process_trains_also_when_it_goes_on_elsewhere(
    ranks: int, later: int, shard: bool, tmp_path: Path
) -> None:
    start, expected = small_model(), small_model()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)

    def end_of_step() -> None:
        norm = nn.utils.clip_grad_norm_(expected.parameters(), custom_trainer.MAX_NORM)
        clipped.append(bool(norm > custom_trainer.MAX_NORM))
        optimizer.step()
        schedule.step()

    clipped: list[bool] = []
    wanted = one_process(custom_trainer, expected, optimizer, 13, end_of_step)
    assert len(set(clipped)) == 2  # some steps are clipped, some are not

    def rank(comm: pycomm.Communicator, steps: int) -> tuple[nn.Module, float]:
        model = copy.deepcopy(start)
        return model, custom_trainer.train(model, comm, tmp_path, steps, shard=shard)

    run_threads(ranks, lambda comm: rank(comm, 7))
    for model, loss in run_threads(later, lambda comm: rank(comm, 13)):
        assert_same(model, expected)
        assert loss == pytest.approx(wanted, rel=1e-4)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-000010",
        "step-000013",
    ]


@pytest.mark.long
@pytest.mark.parametrize("name", ["custom_loop.py", "custom_trainer.py"])
def test_loops_of_ones_own_start_as_they_say(name: str, tmp_path: Path) -> None:
    arguments = [str(tmp_path)] if name == "custom_trainer.py" else []
    outcome = run(2, ROOT / "examples" / name, *arguments)
    assert outcome.status == 0, outcome
    losses = [line.partition(": ")[2] for line in outcome.stdout.splitlines() if line.startswith("rank ")]
    assert len(losses) == 2 and len(set(losses)) == 1
