from __future__ import annotations

import json
from pathlib import Path

import pytest

from pycomm.testing import run_threads
from trainer import FitConfig, fit
from trainer.__main__ import main
from trainer.drawing import colours, running_median

pytest.importorskip("matplotlib")

ROWS = [{"step": 1, "loss": 1}, {"step": 2, "loss": 0.5, "validation": {"loss": 0.7}, "eval": {"loss": 0.4}}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def run_in(folder: Path, **summary: object) -> Path:
    """Of four steps, the second and third of which are slow."""
    folder.mkdir(parents=True)
    times = zip((1, 2, 3, 4), (10.0, 30.0, 30.0, 20.0), (1.0, 2.0, 6.0, 4.0), strict=True)
    rows = [
        {"step": step, "loss": 1 / step, "samples": 30, "step_ms": step_ms, "exposed_comm_ms": exposed}
        for step, step_ms, exposed in times
    ]
    rows[-1]["eval"] = {"loss": 0.4, "accuracy": 0.75, "count": 7}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if summary:
        (folder / "summary.json").write_text(json.dumps({"steps": 4, **summary}))
    return folder


def cells(text: str, run: str) -> dict[str, str]:
    """The row of that run in the first table, by head."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]
    (row,) = [line for line in lines if line[0] == run]
    return dict(zip(lines[0], row, strict=True))


def test_a_report_is_a_picture_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(LINES)
    main(["report", str(tmp_path), "--out", str(tmp_path / "deep" / "loss.svg"), "--panels", "loss"])
    picture = (tmp_path / "deep" / "loss.svg").read_text()
    assert "<svg" in picture
    assert all(f"<!-- {label} -->" in picture for label in ("training", "validation", "test"))
    assert "samples per second" not in picture


def test_runs_stand_side_by_side_in_one_picture_and_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = {"parameters": 4_000_000, "gradients": 2_000_000, "optimizer": 250_000}
    done = {"world_size": 3, "ended": "all steps are done", "peak_rss_bytes": 310_400_000}
    whole = run_in(
        tmp_path / "a" / "x", **done, memory={"bytes_per_rank": held}, strategy="zero1", codec="fp16"
    )
    cut = run_in(tmp_path / "b" / "x")
    out = tmp_path / "all.svg"
    main(["report", str(whole), str(cut), "--out", str(out)])
    text = (tmp_path / "all.md").read_text()
    assert text in capsys.readouterr().out
    expected = {
        "strategy": "zero1", "codec": "fp16", "ended": "all steps are done", "ranks": "3", "batch": "30",
        "steps": "4", "loss": "0.25", "test": "loss 0.4, accuracy 0.75", "step ms": "25.00",
        "samples/s": "1,250", "exposed ms": "3.00", "of step": "12 %", "held MB": "6.25", "peak MB": "310",
    }  # fmt: skip
    assert cells(text, "a/x") == {"run": "a/x", "model": "", **expected}
    unknown = dict.fromkeys(("strategy", "codec", "ranks", "held MB", "peak MB"), "")
    ended = {"ended": "no summary: interrupted, or still running"}
    assert cells(text, "b/x") == {"run": "b/x", "model": "", **expected, **unknown, **ended}
    picture = out.read_text()
    for word in ("a/x", "b/x", "samples per second", "ms per step", "gradients", "6.25", "unknown"):
        assert f"<!-- {word} -->" in picture or f"<!--  {word} -->" in picture, word


def test_a_run_that_fit_made_fills_every_column(tmp_path: Path) -> None:
    config = FitConfig(
        data="linear", model="linear", strategy="zero1", steps=3, threads=1, out=tmp_path / "r"
    )
    run_threads(2, lambda comm: fit(config, comm))
    main(["report", str(tmp_path / "r"), "--out", str(tmp_path / "r.png")])
    row = cells((tmp_path / "r.md").read_text(), "r")
    assert all(row.values()), row
    assert (row["model"], row["ranks"], row["steps"]) == ("linear on linear", "2", "3")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_folders_without_a_run_are_named_and_the_others_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_in(tmp_path / "good")
    (run_in(tmp_path / "torn", strategy="zero1") / "summary.json").write_text('{"steps"')
    (run_in(tmp_path / "odd") / "config.yaml").write_text("stepz: 3")
    (tmp_path / "empty").mkdir()
    (run_in(tmp_path / "bits") / "metrics.jsonl").write_bytes(b"\xff\xfe")
    (run_in(tmp_path / "text") / "metrics.jsonl").write_text('{"step": 1, "loss": "low"}')
    (run_in(tmp_path / "part") / "metrics.jsonl").write_text('{"step": 1, "loss": 1, "eval": {}}')
    (run_in(tmp_path / "yaml") / "config.yaml").write_bytes(b"\xff\xfe\xff")
    folders = [str(path) for path in sorted(tmp_path.iterdir())]
    main(["report", *folders, "--out", str(tmp_path / "out" / "r.png")])
    said = capsys.readouterr().err
    for reason in (
        f"{tmp_path}/empty/metrics.jsonl does not exist",
        f"{tmp_path}/torn/summary.json: expected a summary in JSON",
        f"{tmp_path}/odd/config.yaml: expected options of fit",
        f"{tmp_path}/bits/metrics.jsonl, line 1: expected a row of JSON",
        f"{tmp_path}/text/metrics.jsonl: expected a number as loss of step 1, got 'low'",
        f"{tmp_path}/part/metrics.jsonl: expected a number as eval.loss of step 1, got None",
        f"{tmp_path}/yaml/config.yaml is no YAML file",
    ):
        assert f"left out: {reason}" in said
        assert f"Left out: {reason}" in (tmp_path / "out" / "r.md").read_text()
    assert "good" in (tmp_path / "out" / "r.md").read_text()


def test_many_runs_have_as_many_colours() -> None:
    for count in (1, 2, 10, 11, 30):
        assert len(set(colours(count))) == count


def test_a_running_median_forgets_single_outliers() -> None:
    assert running_median([1, 1, 90, 1, 1, 5], 3) == [1, 1, 1, 1, 1, 3]
    assert running_median([3, 1, 2], 1) == [3, 1, 2]


@pytest.mark.parametrize(
    ("rows", "out", "message"),
    [
        (LINES, "taken/x.svg", "taken/x.svg: File exists"),
        (LINES, "x.xyz", "x.xyz: expected a picture's ending, one of "),
        (LINES, "x", "x: expected a picture's ending, one of "),
        ("", "x.svg", "metrics.jsonl has no rows: the run ended before its first step was done"),
        (LINES + '{"step": 3, "lo', "x.svg", "metrics.jsonl, line 3: expected a row of JSON, got '{"),
        (LINES + "[]\n", "x.svg", "metrics.jsonl, line 3: expected a row with step and loss, got '[]'"),
    ],
)
def test_what_cannot_be_drawn_is_told(
    rows: str, out: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    (tmp_path / "metrics.jsonl").write_text(rows)
    with pytest.raises(SystemExit) as caught:
        main(["report", str(tmp_path), "--out", str(tmp_path / out)])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "taken"]


def test_panels_that_there_are_not_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", str(run_in(tmp_path / "run")), "--panels", "loss,speed"])
    assert "expected of loss, throughput, exposed, memory, got speed" in capsys.readouterr().err
