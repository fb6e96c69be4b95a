from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from tests.helpers import files_of
from trainer.errors import TrainerError
from trainer.metrics import Metrics
from trainer.rows import read_rows


def row(step: int, step_ms: float) -> dict[str, float]:
    return {
        "step": step,
        "loss": 1.0 / step,
        "samples": 10,
        "step_ms": step_ms,
        "exposed_comm_ms": step_ms / 2,
    }


def test_the_file_has_a_row_as_soon_as_it_is_added(tmp_path: Path) -> None:
    with Metrics(tmp_path / "deep" / "er", rank=0, steps=2) as metrics:
        for step in (1, 2):
            metrics.add(row(step, 2.0))
            lines = (tmp_path / "deep" / "er" / "metrics.jsonl").read_text().splitlines()
            assert [json.loads(line)["step"] for line in lines] == list(range(1, step + 1))


def test_the_last_row_is_in_the_file_before_and_after_it_is_amended(tmp_path: Path) -> None:
    with Metrics(tmp_path, rank=0, steps=3, rows=[row(1, 2.0)]) as metrics:
        metrics.add(row(2, 2.0))
        assert read_rows(tmp_path / "metrics.jsonl") == [row(1, 2.0), row(2, 2.0)]
        metrics.amend({"eval": {"loss": 0.5}})
        amended = row(2, 2.0) | {"eval": {"loss": 0.5}}
        assert metrics.rows == read_rows(tmp_path / "metrics.jsonl") == [row(1, 2.0), amended]
        metrics.add(row(3, 2.0))
    assert read_rows(tmp_path / "metrics.jsonl") == [row(1, 2.0), amended, row(3, 2.0)]


def test_an_amendment_without_room_is_trouble_and_leaves_the_rows(tmp_path: Path) -> None:
    with files_of(1024), Metrics(tmp_path, rank=0, steps=1) as metrics:
        metrics.add(row(1, 2.0))
        metrics.amend({"note": "x" * 2000})
        with pytest.raises(TrainerError, match=r"cannot write .*metrics.jsonl: File too large"):
            metrics.write_summary({"a": 1})
    assert read_rows(tmp_path / "metrics.jsonl") == [row(1, 2.0)]


def test_other_ranks_write_and_show_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Metrics(tmp_path / "out", rank=1, steps=1) as metrics:
        metrics.add(row(1, 2.0))
        metrics.write_summary({"a": 1})
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr() == ("", "")


def test_a_row_without_room_is_kept_as_trouble_and_ends_the_file_with_the_one_before(
    tmp_path: Path,
) -> None:
    with files_of(16384), Metrics(tmp_path, rank=0, steps=1000) as metrics:
        for step in range(1, 1001):
            metrics.add(row(step, 2.0))
        with pytest.raises(TrainerError, match=r"cannot write .*metrics.jsonl: File too large"):
            metrics.write_summary({"a": 1})
    assert not (tmp_path / "summary.json").exists()
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert 16384 - 100 < (tmp_path / "metrics.jsonl").stat().st_size <= 16384


def test_timing_is_the_median_and_the_rate_over_all_steps(tmp_path: Path) -> None:
    with Metrics(tmp_path, rank=0, steps=3) as metrics:
        for step, step_ms in ((1, 100.0), (2, 2.0), (3, 4.0)):
            metrics.add(row(step, step_ms))
    timing = metrics.timing()
    assert timing["step_ms_median"] == 4.0
    assert timing["exposed_comm_ms_median"] == 2.0
    assert timing["samples_per_s"] == pytest.approx(30 / 0.106)


def test_where_there_is_no_terminal_a_run_prints_about_ten_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Metrics(tmp_path, rank=0, steps=1000) as metrics:
        for step in range(1, 1001):
            metrics.add(
                {**row(step, 2.0), **({"eval": {"accuracy": 0.5, "count": 7}} if step == 250 else {})}
            )
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 12
    assert "step 250/1000  loss 0.0040  2.0 ms  eval_accuracy 0.5000" in lines


def test_on_a_terminal_a_run_shows_a_bar_with_loss_and_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Metrics(tmp_path, rank=0, steps=2) as metrics:
        metrics.add(row(1, 2.0))
        metrics.add({**row(2, 2.0), "eval": {"accuracy": 0.25, "count": 7}})
    shown = terminal.getvalue()
    assert "2/2" in shown
    assert "loss=0.5000" in shown
    assert "eval_accuracy=0.2500" in shown
    assert "step 1/2" not in shown
