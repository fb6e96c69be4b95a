from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.__main__ import main

pytest.importorskip("matplotlib")

ROWS = [{"step": 1, "loss": 1}, {"step": 2, "loss": 0.5, "validation": {"loss": 0.7}, "eval": {"loss": 0.4}}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def test_a_report_is_a_picture_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(LINES)
    main(["report", str(tmp_path), "--out", str(tmp_path / "deep" / "loss.svg")])
    picture = (tmp_path / "deep" / "loss.svg").read_text()
    assert "<svg" in picture
    assert all(f"<!-- {label} -->" in picture for label in ("training", "validation", "test"))


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
