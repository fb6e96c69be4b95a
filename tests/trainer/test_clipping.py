"""Clipping by global norm: torch's, whatever is sharded."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from ended_runs import messages
from torch import Tensor, nn

from pycomm.testing import run_threads
from trainer import FitConfig, TrainerError, fit
from trainer.clipping import clip, sum_of_squares
from trainer.errors import DivergedError
from trainer.models import MODELS


@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_it_is_torchs_clipping(max_norm: float) -> None:
    torch.manual_seed(0)
    mine = [torch.randn(3, 5), torch.randn(()), torch.randn(0), torch.randn(70)]
    theirs = [torch.nn.Parameter(part.clone()) for part in mine]
    for parameter, part in zip(theirs, mine, strict=True):
        parameter.grad = part.clone()
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    assert clip(mine, max_norm) == pytest.approx(expected.item(), rel=1e-6)
    for parameter, part in zip(theirs, mine, strict=True):
        torch.testing.assert_close(part, parameter.grad)


def test_the_norm_is_that_of_all_ranks() -> None:
    gradient = torch.tensor([3.0])
    assert clip([gradient], 1.0, lambda own: sum_of_squares(own) + 16) == 5.0
    assert gradient.item() == pytest.approx(0.6, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_changes_nothing(value: float) -> None:
    gradients = [torch.tensor([2.0]), torch.tensor([value])]
    assert not math.isfinite(clip(gradients, 1.0))
    assert gradients[0].item() == 2.0


def test_gradients_whose_norm_overflows_float32_are_clipped() -> None:
    gradients = [torch.tensor([3e38, 3e38]), torch.tensor([3e38])]
    assert clip(gradients, 1.0) == pytest.approx(3e38 * math.sqrt(3), rel=1e-6)
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.full_like(gradient, 1 / math.sqrt(3)), rtol=1e-5, atol=0)


def test_a_norm_that_overflows_float64_is_infinite_and_changes_nothing() -> None:
    gradients = [
        torch.tensor([1.3e154, 1.0], dtype=torch.float64),
        torch.tensor([1e200], dtype=torch.float64),
    ]
    assert clip(gradients, 1.0) == math.inf
    assert clip(gradients[:1] * 2, 1.0) == math.inf
    assert gradients[0].tolist() == [1.3e154, 1.0]


class Steep(nn.Module):
    """Its loss is small, and the norm of its gradient no number of float64."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x.double() @ self.weight * 1e200).float()


def test_a_norm_that_is_not_finite_ends_all_ranks_before_the_update(tmp_path: Path) -> None:
    if "steep" not in MODELS.names():
        MODELS.register("steep")(Steep)
    config = FitConfig(
        data="linear", model="steep", steps=3, global_batch=10, clip_norm=1.0, threads=1, out=tmp_path
    )
    said = messages(2, config, DivergedError)
    assert said == [said[0]] * 2
    assert "the norm of the gradients is inf at step 1; " in said[0]
    assert "last_good.safetensors has the parameters after step 0" in said[0]
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_nothing_has_norm_0() -> None:
    assert clip([], 1.0) == 0.0


@pytest.mark.parametrize("strategy", ["data_parallel", "zero1", "zero2", "zero3"])
def test_every_strategy_clips_as_one_process_does(strategy: str, tmp_path: Path) -> None:
    def run(name: str, size: int) -> list[tuple[float, float]]:
        config = FitConfig(
            data="linear", model="linear", strategy=name, steps=6, global_batch=10, optimizer="sgd",
            lr=0.05, clip_norm=2.0, threads=1, out=tmp_path / name,
        )  # fmt: skip
        run_threads(size, lambda comm: fit(config, comm))
        from trainer.rows import read_rows

        return [(row["loss"], row["grad_norm"]) for row in read_rows(tmp_path / name / "metrics.jsonl")]

    expected = run("single", 1)
    assert expected[0][1] > 2.0
    for got, want in zip(run(strategy, 3), expected, strict=True):
        assert got == pytest.approx(want, rel=1e-5)


def test_a_strategy_that_does_not_clip_says_so_before_the_run(tmp_path: Path) -> None:
    from trainer import STRATEGIES, Strategy

    if "without_clipping" not in STRATEGIES.names():

        @STRATEGIES.register("without_clipping")
        class WithoutClipping(Strategy):
            def __init__(self, *_: object) -> None: ...

            def step(self) -> None: ...

    config = FitConfig(
        data="linear", model="linear", strategy="without_clipping", clip_norm=1.0, out=tmp_path / "run"
    )
    with pytest.raises(TrainerError, match="WithoutClipping does not clip gradients"):
        run_threads(1, lambda comm: fit(config, comm))
    assert not (tmp_path / "run").exists()
