"""y = 3x + 2 + N(0, 1) with x ~ U(0, 10), n = 1000; SGD of rate 0.01, global batch 10, 10 epochs.

The Hessian of the mean squared error is 2 [[E x², E x], [E x, 1]], its largest eigenvalue about 68: a step of
0.01 times the mean gradient contracts (0.68 < 2), and one of 0.01 times the sum of four ranks' means does not
(2.7 > 2). The batch of 10 does not divide by 3 or 4.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.helpers import run
from tests.seeds.table import Table
from tests.seeds.training import (
    Trace,
    Training,
    difference,
    in_one_process,
    loss_difference,
    on_ranks,
    rows_of,
)
from trainer import DATA
from trainer.weights import load_weights

FIT = "fit --data linear --data_options.count 1250 --model linear --optimizer sgd --lr 0.01 --global_batch 10"


@pytest.fixture(scope="module")
def training() -> Training:
    torch.manual_seed(0)
    inputs, targets = DATA.build("linear", seed=0, count=1250).train  # 1250: a fifth is held out
    loss = partial(functional.mse_loss, reduction="sum")
    optimizer = partial(torch.optim.SGD, lr=0.01)
    return Training(inputs, targets, nn.Linear(1, 1), loss, optimizer, global_batch=10, steps=1000)


@pytest.fixture(scope="module")
def one_process(training: Training) -> Trace:
    return in_one_process(training)


def mean_squared_error(inputs: Tensor, targets: Tensor, weight: float, bias: float) -> float:
    return ((weight * inputs + bias - targets) ** 2).mean().item()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
def test_the_line_is_found_at_any_number_of_ranks(
    ranks: int, training: Training, one_process: Trace, table: Table
) -> None:
    trace = on_ranks(training, ranks)[0]
    inputs, targets = training.inputs, training.targets
    design = torch.cat([inputs, torch.ones_like(inputs)], 1)
    least = mean_squared_error(
        inputs, targets, *torch.linalg.lstsq(design, targets).solution.flatten().tolist()
    )
    weight, bias = trace.parameters[-1].tolist()
    assert len(inputs) == 1000
    table.near("w", 3.0, weight, within=0.15, ranks=ranks)
    table.near("b", 2.0, bias, within=0.25, ranks=ranks)
    found = mean_squared_error(inputs, targets, weight, bias) / least
    table.at_most("MSE / least squares", 1.5, found, ranks=ranks)
    table.at_most("w, b beside one process", 1e-5, difference(trace, one_process), ranks=ranks)
    table.at_most("losses beside one process", 1e-5, loss_difference(trace, one_process), ranks=ranks)


def test_four_ranks_that_sum_their_means_diverge_and_say_so(tmp_path: Path, table: Table) -> None:
    arguments = ["--grad_reduction", "sum", "--out", str(tmp_path)]
    ended = run(4, "-m", "trainer", *FIT.split(), *arguments, limit_s=90)
    assert ended.status != 0, ended
    losses = [row["loss"] for row in rows_of(tmp_path)]
    said = re.findall(
        r"\[rank (\d)\] trainer.errors.DivergedError: (the loss is \S+ at step \d+) on rank [\d, ]+ \(of 4\)"
        r".*last_good.safetensors has the parameters after step (\d+)$",
        ended.stderr,
        re.MULTILINE,
    )
    steps, expected = len(losses), f"the loss is inf at step {len(losses) + 1}"
    table.at_least("means summed: last finite loss", 1e6, losses[-1], ranks=4)
    table.equal("means summed: ends with", {expected}, {loss for _, loss, _ in said}, ranks=4)
    table.equal("means summed: said by ranks", list("0123"), sorted(rank for rank, _, _ in said), ranks=4)
    table.equal("means summed: kept after step", {str(steps)}, {step for _, _, step in said}, ranks=4)
    assert load_weights(tmp_path / "last_good.safetensors", nn.Linear(1, 1)) == steps
    assert not (tmp_path / "summary.json").exists()
