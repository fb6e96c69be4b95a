"""What TensorBoard's own reader finds in a run's folder is what metrics.jsonl says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pycomm.testing import run_threads
from tests.helpers import files_of
from trainer import FitConfig, TrainerError, fit
from trainer.__main__ import main
from trainer.metrics import Metrics
from trainer.rows import read_rows
from trainer.tensorboard import Board, check_installed, scalars

LINEAR: dict[str, Any] = {
    "data": "linear", "model": "linear", "optimizer": "sgd", "lr": 0.01, "global_batch": 100, "threads": 1,
    "data_options": {"validation_fraction": 0.2}, "eval_every": 2, "tensorboard": True,
}  # fmt: skip


@pytest.fixture
def installed() -> None:
    pytest.importorskip("tensorboard")


def read(out: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def expected(out: Path) -> dict[str, list[tuple[int, Any]]]:
    found: dict[str, list[tuple[int, Any]]] = {}
    for row in read_rows(out / "metrics.jsonl"):
        for tag, value in scalars(row):
            found.setdefault(tag, []).append((row["step"], pytest.approx(value, rel=1e-6)))
    return found


def test_numbers_of_a_row_have_the_names_of_their_splits() -> None:
    row = {"step": 3, "loss": 0.5, "note": "x", "flag": True, "none": None, "eval": {"loss": 1, "count": 7}}
    assert list(scalars(row)) == [("training/loss", 0.5), ("test/loss", 1), ("test/count", 7)]


@pytest.mark.usefixtures("installed")
def test_a_resumed_run_shows_every_step_once(tmp_path: Path) -> None:
    first = FitConfig(**LINEAR, out=tmp_path, steps=5, save_every=3)
    run_threads(2, lambda comm: fit(first, comm))
    shown = read(tmp_path)
    assert shown == expected(tmp_path)
    assert [step for step, _ in shown["training/loss"]] == [1, 2, 3, 4, 5]
    assert [step for step, _ in shown["validation/loss"]] == [2, 4, 5]
    assert {"training/lr", "training/step_ms", "training/exposed_comm_ms", "test/loss"} < shown.keys()

    shutil.rmtree(tmp_path / "checkpoints" / "step-000005")  # as if killed before it was there
    again = FitConfig(**LINEAR, out=tmp_path, steps=8, save_every=3, resume="auto")
    run_threads(3, lambda comm: fit(again, comm))
    assert read(tmp_path) == expected(tmp_path)
    assert [step for step, _ in read(tmp_path)["training/loss"]] == list(range(1, 9))


@pytest.mark.usefixtures("installed")
def test_a_new_run_without_it_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    with Metrics(tmp_path, rank=0, steps=1, tensorboard=True) as metrics:
        metrics.add({"step": 1, "loss": 1.0, "step_ms": 1.0})
    assert read(tmp_path) == expected(tmp_path)
    run_threads(
        1, lambda comm: fit(FitConfig(**LINEAR | {"tensorboard": False}, out=tmp_path, steps=1), comm)
    )
    assert list((tmp_path / "tensorboard").iterdir()) == []


@pytest.mark.usefixtures("installed")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with files_of(16384), pytest.raises(TrainerError, match=r"cannot write .*/tensorboard: File too large"):
        board = Board(tmp_path)
        for step in range(1000):
            board.add(step, {"loss": 1.0})
        board.close()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TrainerError, match="needs the package tensorboard: pip install tensorboard"):
        check_installed()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("words", "written"), [(["--tensorboard"], True), (["--tensorboard", "false"], False)]
)
def test_the_option_is_a_switch(
    words: list[str], written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[FitConfig] = []
    monkeypatch.setattr("trainer.__main__._run_fit", lambda config, trace: seen.append(config))
    main(["fit", "--data", "linear", "--model", "linear", *words, "--steps", "3", "--out", str(tmp_path)])
    assert [(config.tensorboard, config.steps) for config in seen] == [(written, 3)]
