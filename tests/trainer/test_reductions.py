"""What --grad_reduction does to a step, against the same arithmetic in float64."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pycomm.testing import run_threads
from trainer import DATA, MODELS, FitConfig, fit
from trainer.sampler import Sampler
from trainer.weights import load_weights

LR, STEPS = 0.001, 3
REDUCTIONS = ("global_mean", "rank_mean", "sum")


@MODELS.register("test_origin")
def origin(inputs: int = 1, outputs: int = 1) -> nn.Module:
    model = nn.Linear(inputs, outputs)  # the same on all ranks, though they are threads
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def trained(size: int, reduction: str, out: Path, **options: object) -> list[float]:
    settings = {"optimizer": "sgd", "lr": LR, "global_batch": 10, "steps": STEPS, "threads": 1, **options}
    config = FitConfig(data="linear", model="test_origin", out=out, grad_reduction=reduction, **settings)
    run_threads(size, lambda comm: fit(config, comm))
    model = nn.Linear(1, 1)
    load_weights(out / "model.safetensors", model)
    return [model.weight.item(), model.bias.item()]


def by_hand(size: int, reduction: str, global_batch: int = 10) -> list[float]:
    x, y = (part[:, 0].double().numpy() for part in DATA.build("linear", seed=0).train)
    line = np.zeros(2)
    for step in range(STEPS):
        parts = [Sampler(len(x), global_batch, 0, rank, size).batch(step).indices for rank in range(size)]
        sums = np.zeros((size, 2))
        for rank, part in enumerate(parts):
            wrong = line[0] * x[part] + line[1] - y[part]
            sums[rank] = (2 * wrong * x[part]).sum(), (2 * wrong).sum()
        means = sums / np.maximum(1, [len(part) for part in parts])[:, None]
        line = (
            line
            - LR
            * {
                "global_mean": sums.sum(0) / sum(len(part) for part in parts),
                "rank_mean": means.mean(0),
                "sum": means.sum(0),
            }[reduction]
        )
    return list(line)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_step_is_that_of_its_definition(size: int, reduction: str, tmp_path: Path) -> None:
    assert trained(size, reduction, tmp_path) == pytest.approx(by_hand(size, reduction), rel=1e-5)


def test_they_differ_where_ranks_have_different_counts() -> None:
    steps = [by_hand(3, reduction) for reduction in REDUCTIONS]
    assert abs(steps[0][0] - steps[1][0]) > 1e-3 * abs(steps[0][0])
    assert steps[2][0] > 1.5 * steps[0][0]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_rank_without_samples_adds_nothing(reduction: str, tmp_path: Path) -> None:
    got = trained(3, reduction, tmp_path, global_batch=2)
    assert got == pytest.approx(by_hand(3, reduction, global_batch=2), rel=1e-5)


def test_the_loss_that_is_reported_is_the_mean_over_samples_in_any_case(tmp_path: Path) -> None:
    first = []
    for reduction in REDUCTIONS:
        trained(3, reduction, tmp_path)
        first.append(json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert len(set(first)) == 1


def test_one_process_has_one_mean(tmp_path: Path) -> None:
    lines = [trained(1, reduction, tmp_path, strategy="single") for reduction in REDUCTIONS]
    assert lines[0] == lines[1] == lines[2]
    assert lines[0] == pytest.approx(by_hand(1, "sum"), rel=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_text_is_averaged_over_tokens(size: int, tmp_path: Path) -> None:
    options = {"length": 8, "limit_bytes": 2000}
    tiny = {"width": 8, "heads": 1, "layers": 1}
    config = FitConfig(
        data="pytext", model="gpt", data_options=options, model_options=tiny, out=tmp_path, global_batch=5,
        steps=1, optimizer="sgd", lr=1.0, threads=1,
    )  # fmt: skip
    run_threads(size, lambda comm: fit(config, comm))
    data = DATA.build("pytext", seed=0, **options)
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row["samples"] == 5
    assert row["eval"]["count"] == data.test[1].numel()
    # An untrained model guesses: a nat per token is ln 256, not 8 times that.
    assert row["loss"] == pytest.approx(np.log(256), rel=0.02)


def test_the_step_of_text_is_that_of_the_mean_over_tokens(tmp_path: Path) -> None:
    """The bias-free gradient of a table of logits, by hand."""
    config = FitConfig(
        data="pytext", model="test_table", data_options={"length": 8, "limit_bytes": 2000}, out=tmp_path,
        global_batch=5, steps=1, optimizer="sgd", lr=1.0, threads=1,
    )  # fmt: skip
    run_threads(3, lambda comm: fit(config, comm))
    data = DATA.build("pytext", seed=0, length=8, limit_bytes=2000)
    inputs, targets = (part[Sampler(len(data.train[0]), 5, 0).batch(0).indices].long() for part in data.train)
    expected = torch.zeros(256, 256)
    for before, after in zip(inputs.flatten().tolist(), targets.flatten().tolist(), strict=True):
        expected[before] -= torch.full((256,), 1 / 256) / 40
        expected[before, after] += 1 / 40
    model = table(256, 8)
    load_weights(tmp_path / "model.safetensors", model)
    assert torch.allclose(model.weight, expected, rtol=1e-4, atol=1e-8)


class Table(nn.Embedding):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().forward(tokens.long())


@MODELS.register("test_table")
def table(vocabulary: int, context: int) -> nn.Module:
    model = Table(vocabulary, vocabulary)
    nn.init.zeros_(model.weight)
    return model
