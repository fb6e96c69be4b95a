"""--accumulate: a step is that of the whole global batch, in however many micro-batches it is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pycomm.testing import run_threads
from trainer import MODELS, FitConfig, TrainerError, fit
from trainer.rows import read_rows
from trainer.strategy import STRATEGIES

GLOBAL_BATCH = 10
PARALLEL = ("data_parallel", "zero1", "zero2")


@MODELS.register("test_passes")
def small(inputs: int, outputs: int) -> nn.Module:
    model = nn.Sequential(nn.Linear(inputs, 9), nn.Tanh(), nn.Linear(9, outputs))
    for index, parameter in enumerate(model.parameters()):  # ranks as threads draw from one generator
        parameter.data = torch.linspace(-1, 1, parameter.numel()).view(parameter.shape) * (index + 1) / 4
    return model


def losses(out: Path, ranks: int, strategy: str, **options: Any) -> list[float]:
    settings = {"optimizer": "adam", "lr": 0.01, "global_batch": GLOBAL_BATCH, "steps": 5, **options}
    config = FitConfig(
        data="linear", model="test_passes", strategy=strategy, threads=1, out=out, bucket_mb=5e-5, **settings
    )  # fmt: skip
    run_threads(ranks, lambda comm: fit(config, comm))
    return [row["loss"] for row in read_rows(out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one process that takes each step at once."""
    return losses(tmp_path_factory.mktemp("whole"), 1, "single")


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 7), (2, 2), (3, 7), (4, 2)])
@pytest.mark.parametrize("strategy", PARALLEL)
def test_losses_are_those_of_one_process(
    strategy: str, ranks: int, accumulate: int, whole: list[float], tmp_path: Path
) -> None:
    """Of seven micro-batches some are empty, on three ranks different ones; 10 is no multiple of three."""
    overlap = "off" if strategy == "zero1" else "on"
    got = losses(tmp_path, ranks, strategy, accumulate=accumulate, overlap=overlap)
    assert got == pytest.approx(whole, rel=1e-5)


def test_one_process_accumulates_too(whole: list[float], tmp_path: Path) -> None:
    assert losses(tmp_path, 1, "single", accumulate=3) == pytest.approx(whole, rel=1e-5)


def test_more_ranks_than_samples_and_more_micro_batches_than_either(tmp_path: Path) -> None:
    expected = losses(tmp_path / "whole", 1, "single", global_batch=2)
    for strategy in PARALLEL:
        got = losses(tmp_path / strategy, 4, strategy, global_batch=2, accumulate=3)
        assert got == pytest.approx(expected, rel=1e-5)


def test_a_forward_has_one_micro_batch_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[int] = []
    forward = nn.Tanh.forward

    def counting(self: nn.Tanh, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            seen.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(nn.Tanh, "forward", counting)
    losses(tmp_path, 1, "single", accumulate=4, steps=2)
    assert seen == [3, 3, 2, 2] * 2


@pytest.mark.parametrize("strategy", sorted(PARALLEL))
def test_rank_means_of_micro_batches_are_those_of_the_whole(strategy: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"grad_reduction": "rank_mean"}
    if strategy != "data_parallel":
        with pytest.raises(TrainerError, match="expected grad_reduction global_mean"):
            losses(tmp_path, 1, strategy, accumulate=3, **options)
        return
    whole = losses(tmp_path / "whole", 3, strategy, **options)
    got = losses(tmp_path / "parts", 3, strategy, accumulate=3, **options)
    assert got == pytest.approx(whole, rel=1e-5)


def test_no_micro_batch_is_refused() -> None:
    with pytest.raises(TrainerError, match="accumulate: expected 1 or more, got 0"):
        FitConfig(accumulate=0).check()


def test_every_strategy_at_hand_is_tried() -> None:
    ours = {name for name in STRATEGIES.names() if STRATEGIES.factory(name).__module__.startswith("trainer.")}
    assert ours - {"single", "zero3"} == set(PARALLEL)
