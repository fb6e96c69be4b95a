"""The algorithm in examples/ runs, and does what it says. Its loops: tests/trainer/test_own_loops.py."""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers import ROOT, run


def test_an_algorithm_of_ones_own_is_right_on_three_ranks() -> None:
    outcome = run(3, ROOT / "examples" / "own_algorithm.py")
    assert outcome.status == 0, outcome
    assert outcome.stdout.startswith("right on 3 ranks:\nchunks 3\n"), outcome


def test_an_algorithm_of_ones_own_is_a_row_of_the_benchmark(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    chosen = ["--plugin", "examples.own_algorithm", "--impl", "pycomm:exchange,pycomm:exchange+fp16"]
    limits = ["--min", "4K", "--max", "4K", "--seconds", "0.01", "--iters", "5", "--json", str(result)]
    outcome = run(2, "-m", "bench", "collectives", *chosen, *limits)
    assert outcome.status == 0, outcome
    rows = json.loads(result.read_text())["rows"]
    assert [row["impl"] for row in rows] == ["pycomm:exchange", "pycomm:exchange+fp16"]
