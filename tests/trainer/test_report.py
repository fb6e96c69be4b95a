from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.__main__ import main


def test_a_report_is_a_picture_of_the_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    rows[-1]["eval"] = {"loss": 0.4}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["report", str(tmp_path), "--out", str(tmp_path / "deep" / "loss.svg")])
    assert "<svg" in (tmp_path / "deep" / "loss.svg").read_text()
