"""A resumed run is the run that was not interrupted: to the bit on as many ranks, else to rounding."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pycomm.testing import run_threads
from trainer import FitConfig, fit
from trainer.checkpoint.stored import saved
from trainer.errors import DivergedError
from trainer.validation import Validation

SIZES = range(1, 5)
STEPS = 13  # an epoch has 8; the last batch of each is smaller
TIMES = {"step_ms", "exposed_comm_ms"}
TIMINGS = {"step_ms_median", "samples_per_s", "exposed_comm_ms_median", "peak_rss_bytes", "memory"}
RUN: dict[str, Any] = {
    "data": "linear", "data_options": {"validation_fraction": 0.1}, "model": "linear", "threads": 1,
    "global_batch": 90, "steps": STEPS, "save_every": 5, "keep": 9, "lr": 0.01, "eval_every": 2,
}  # fmt: skip
MOMENTUM = {"optimizer": "sgd", "optimizer_options": {"momentum": 0.9}, "lr": 0.001}
CASES: dict[str, dict[str, Any]] = {
    "momentum": MOMENTUM,
    "adam": {"optimizer": "adam"},
    "adagrad": {"optimizer": "adagrad"},
    "cosine": {**MOMENTUM, "schedule": "cosine", "warmup_steps": 3},
    "linear": {"optimizer": "adam", "schedule": "linear", "warmup_steps": 7},
    "step": {"optimizer": "adamw", "schedule": "step", "schedule_options": {"every": 2, "gamma": 0.7}},
    "patience": {**MOMENTUM, "eval_every": 1, "patience": 30, "tolerance": 0.5},
}
# Ranks before and after: all of them by `make resume-grid`, some here.
ALL = os.environ.get("PYCOMM_RESUME_GRID") == "all"
OTHERS = [(saving, going_on) for saving in SIZES for going_on in SIZES if saving != going_on]
AS_MANY, OTHERS = (SIZES, OTHERS) if ALL else ([1, 3], [(1, 3), (4, 2), (3, 4)])


def train(size: int, out: Path, **options: Any) -> dict[str, Any]:
    """The summary without timings, the same on all ranks."""
    config = FitConfig(**{**RUN, "out": out, **options})
    summaries = run_threads(size, lambda comm: fit(config, comm))
    untimed = [{name: value for name, value in each.items() if name not in TIMINGS} for each in summaries]
    assert all(each == untimed[0] for each in untimed)
    return untimed[0]


def rows(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in lines]


def weights(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        header = file.metadata()
    return header, {name: tensor.tolist() for name, tensor in load_file(path).items()}


def interrupted(whole: Path, out: Path, step: int) -> Path:
    """What a run leaves that was killed after its last step, and whose last checkpoint is that of `step`."""
    shutil.copytree(whole, out)
    (out / "summary.json").unlink()
    (out / "model.safetensors").unlink()
    for later, folder in saved(out / "checkpoints").items():
        if later > step:
            shutil.rmtree(folder)
    return out


@pytest.mark.parametrize("size", AS_MANY)
@pytest.mark.parametrize("case", CASES)
def test_on_as_many_ranks_every_bit_is_that_of_the_uninterrupted_run(
    case: str, size: int, tmp_path: Path
) -> None:
    expected = train(size, tmp_path / "whole", **CASES[case])
    for step in (5, 10):  # in the midst of the first epoch, and of the second
        out = interrupted(tmp_path / "whole", tmp_path / str(step), step)
        assert train(size, out, **CASES[case], resume="auto") == expected
        assert rows(out) == rows(tmp_path / "whole")
        for name in ("model.safetensors", "best.safetensors"):
            assert weights(out / name) == weights(tmp_path / "whole" / name)
        assert list(saved(out / "checkpoints")) == [5, 10, 13]


@pytest.mark.parametrize(("saving", "going_on"), OTHERS)
@pytest.mark.parametrize("case", ["momentum", "adam"])
def test_on_other_ranks_it_is_the_same_up_to_rounding(
    case: str, saving: int, going_on: int, tmp_path: Path
) -> None:
    expected = train(saving, tmp_path / "whole", **CASES[case])
    out = interrupted(tmp_path / "whole", tmp_path / "resumed", 5)
    got = train(going_on, out, **CASES[case], resume="auto")
    assert got["world_size"] == going_on
    assert got["loss_last"] == pytest.approx(expected["loss_last"], rel=1e-6)
    assert [row["loss"] for row in rows(out)] == pytest.approx(
        [row["loss"] for row in rows(tmp_path / "whole")], rel=1e-6
    )
    same = load_file(tmp_path / "whole" / "model.safetensors")
    for name, tensor in load_file(out / "model.safetensors").items():
        torch.testing.assert_close(tensor, same[name], rtol=1e-6, atol=0)


def test_what_only_says_how_to_compute_may_change(tmp_path: Path) -> None:
    expected = train(1, tmp_path / "whole", **MOMENTUM)
    out = interrupted(tmp_path / "whole", tmp_path / "resumed", 5)
    other = {"strategy": "single", "bucket_mb": 1, "save_every": 7, "keep": 1, "resume": "auto"}
    got = train(1, out, **MOMENTUM, **other)
    assert {**got, "strategy": "data_parallel"} == expected
    assert list(saved(out / "checkpoints")) == [13]


def test_a_run_goes_on_in_another_folder_with_its_rows(tmp_path: Path) -> None:
    expected = train(2, tmp_path / "whole", **MOMENTUM)
    checkpoint = str(tmp_path / "whole" / "checkpoints" / "step-000010")
    assert train(2, tmp_path / "other", **MOMENTUM, resume=checkpoint) == expected
    assert rows(tmp_path / "other") == rows(tmp_path / "whole")
    assert list(saved(tmp_path / "other" / "checkpoints")) == [13]


@pytest.mark.parametrize("how", ["a bare name", "a link"])
def test_a_checkpoint_is_where_its_folder_is_however_it_is_named(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(2, tmp_path / "whole", **MOMENTUM)
    out = interrupted(tmp_path / "whole", tmp_path / "resumed", 10)
    if how == "a bare name":
        monkeypatch.chdir(out / "checkpoints")
        name = "step-000010"
    else:
        (tmp_path / "newest").symlink_to(out / "checkpoints" / "step-000010")
        name = str(tmp_path / "newest")
    assert train(2, out, **MOMENTUM, resume=name) == expected
    assert rows(out) == rows(tmp_path / "whole")


def test_a_checkpoint_that_was_moved_away_from_its_rows_begins_new_ones(tmp_path: Path) -> None:
    expected = train(2, tmp_path / "whole", **MOMENTUM)
    moved = tmp_path / "somewhere" / "x" / "kept"
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "step-000010", moved)
    got = train(2, tmp_path / "other", **MOMENTUM, resume=str(moved))
    assert [row["step"] for row in rows(tmp_path / "other")] == [11, 12, 13]
    assert {**got, "loss_first": expected["loss_first"]} == expected


def test_more_steps_are_those_of_a_longer_run(tmp_path: Path) -> None:
    options = {**MOMENTUM, "eval_every": 1, "schedule": "cosine", "warmup_steps": 2}
    shorter = train(2, tmp_path / "run", **options, steps=10)
    grown = train(2, tmp_path / "run", **options, steps=STEPS, resume="auto")
    assert (shorter["steps"], grown["steps"]) == (10, STEPS)
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, STEPS + 1))
    train(2, tmp_path / "whole", **options)
    assert rows(tmp_path / "run")[10:] != rows(tmp_path / "whole")[10:]  # the first 10 had other rates
    assert [row["lr"] for row in rows(tmp_path / "run")[10:]] == [
        row["lr"] for row in rows(tmp_path / "whole")[10:]
    ]


def test_more_epochs_of_a_constant_rate_are_the_longer_run(tmp_path: Path) -> None:
    options = {**MOMENTUM, "eval_every": 1, "steps": None}
    train(2, tmp_path / "run", **options, epochs=1)
    train(2, tmp_path / "run", **options, epochs=2, resume="auto")
    train(2, tmp_path / "whole", **options, epochs=2)
    again = rows(tmp_path / "run")
    assert again[7].pop("eval", None) is not None  # it was the last step once
    assert again == rows(tmp_path / "whole")


def test_a_finished_run_has_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = train(2, tmp_path, **MOMENTUM)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    assert train(2, tmp_path, **MOMENTUM, resume="auto") == expected
    assert capsys.readouterr().out == (
        f"nothing to do: 13 of 13 steps are done; all steps are done (see {tmp_path}/summary.json)\n"
    )
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_that_was_killed_after_its_last_checkpoint_is_finished(tmp_path: Path) -> None:
    expected = train(2, tmp_path / "whole", **MOMENTUM)
    out = interrupted(tmp_path / "whole", tmp_path / "resumed", STEPS)
    assert train(2, out, **MOMENTUM, resume="auto") == expected
    assert rows(out) == rows(tmp_path / "whole")
    for name in ("model.safetensors", "best.safetensors"):
        assert weights(out / name) == weights(tmp_path / "whole" / name)


def test_a_run_that_is_killed_in_its_last_words_can_say_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(2, tmp_path / "whole", **MOMENTUM)
    out = interrupted(tmp_path / "whole", tmp_path / "resumed", STEPS)

    def killed(*_: object) -> None:
        raise SystemError("killed")

    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(SystemError, match="killed"):
            patch.setattr(Validation, "test", killed)
            train(2, out, **MOMENTUM, resume="auto")
        assert [row["step"] for row in rows(out)] == list(range(1, STEPS + 1))
    assert train(2, out, **MOMENTUM, resume="auto") == expected
    assert rows(out) == rows(tmp_path / "whole")


def test_a_test_loss_that_is_not_finite_leaves_a_run_that_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last save is pending then, and becomes a checkpoint."""
    expected = train(2, tmp_path / "whole", **MOMENTUM)

    def diverged(_: object, step: int) -> None:
        raise DivergedError("the test loss is nan", step)

    with monkeypatch.context() as patch, pytest.raises(DivergedError, match="step-000013"):
        patch.setattr(Validation, "test", diverged)
        train(2, tmp_path / "run", **MOMENTUM)
    assert train(2, tmp_path / "run", **MOMENTUM, resume="auto") == expected
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_a_run_that_stopped_early_goes_on_with_more_patience(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = {**MOMENTUM, "eval_every": 1, "tolerance": 1000.0, "steps": 30}
    early = train(2, tmp_path / "run", **stopping, patience=3)
    assert early["steps"] == 4
    assert train(2, tmp_path / "run", **stopping, patience=3, resume="auto") == early
    assert "4 of 30 steps are done; the validation loss has not improved" in capsys.readouterr().out
    later = train(2, tmp_path / "run", **stopping, patience=6, resume="auto")
    assert later == train(2, tmp_path / "whole", **stopping, patience=6)
    assert later["steps"] == 7


def test_auto_begins_where_there_is_no_checkpoint(tmp_path: Path) -> None:
    started = train(2, tmp_path / "auto", **MOMENTUM, resume="auto")
    assert started == train(2, tmp_path / "whole", **MOMENTUM)
    assert rows(tmp_path / "auto") == rows(tmp_path / "whole")
