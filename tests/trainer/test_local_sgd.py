"""The seam: a third strategy, from this file alone.

Local SGD (Stich, "Local SGD Converges Fast and Communicates Little", ICLR 2019): every rank steps on its own
samples, and parameters are averaged every H steps.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import pycomm
from pycomm.testing import run_threads
from trainer import STRATEGIES, FitConfig, Strategy, TrainerError, Wire, fit
from trainer.data import DATA
from trainer.sampler import Batch, Sampler


@STRATEGIES.register("local_sgd")
class LocalSGD(Strategy):
    def __init__(
        self,
        model: nn.Module,
        comm: pycomm.Communicator,
        optimizer: torch.optim.Optimizer,
        wire: Wire,
        every: int = 4,
    ) -> None:
        self._model = model
        self._comm = comm
        self._optimizer = optimizer
        self._every = every
        self._local_count = 0
        self._steps = 0
        # Zero and not rank 0's: ranks that are threads draw from one random generator.
        for parameter in model.parameters():
            nn.init.zeros_(parameter)

    def before_forward(self, batch: Batch | None) -> None:
        if batch is None:
            self._average()
        else:
            self._local_count = len(batch.indices)

    def step(self) -> None:
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(self._local_count)
        self._optimizer.step()
        self._steps += 1
        if self._steps % self._every == 0:
            self._average()

    def close(self) -> None:
        self._average()

    def _average(self) -> None:
        for parameter in self._model.parameters():
            self._comm.all_reduce(parameter.data, op="avg")


def config(tmp_path: Path, every: int, steps: int) -> FitConfig:
    return FitConfig(
        data="linear",
        model="linear",
        strategy="local_sgd",
        strategy_options={"every": every},
        out=tmp_path,
        optimizer="sgd",
        lr=0.01,
        global_batch=40,
        steps=steps,
        eval_every=7,
        threads=1,
    )


@pytest.mark.parametrize("size", [1, 2, 4])
def test_averaging_every_step_is_the_step_of_one_process(size: int, tmp_path: Path) -> None:
    settings = config(tmp_path, every=1, steps=30)
    data = DATA.build("linear", seed=0)
    sampler = Sampler(len(data.train[0]), 40, 0)
    weight, bias = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for step in range(30):
        x, y = (part[sampler.batch(step).indices].double() for part in data.train)
        error = weight * x + bias - y
        weight, bias = weight - 0.02 * (error * x).mean(), bias - 0.02 * error.mean()
    expected = ((weight * data.test[0] + bias - data.test[1]) ** 2).mean().item()
    for summary in run_threads(size, lambda comm: fit(settings, comm)):
        assert summary["strategy"] == "local_sgd"
        assert summary["eval"]["loss"] == pytest.approx(expected, rel=1e-4)


def test_averaging_now_and_then_finds_the_line(tmp_path: Path) -> None:
    summaries = run_threads(3, lambda comm: fit(config(tmp_path, every=5, steps=302), comm))
    # 302 is no multiple of 5: the last average is that of close().
    assert len({summary["param_sha256"] for summary in summaries}) == 1
    # The noise has variance 1; 200 test points estimate it with a standard error of 0.1.
    assert 0.5 < summaries[0]["eval"]["loss"] < 1.5


def test_an_unknown_option_of_it_lists_its_own(tmp_path: Path) -> None:
    settings = config(tmp_path, every=1, steps=1)
    settings.strategy_options = {"evry": 3}
    with pytest.raises(TrainerError, match=r"strategy 'local_sgd': .*'evry'.* every"):
        run_threads(1, lambda comm: fit(settings, comm))
