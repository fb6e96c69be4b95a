"""The tables that are made of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pycomm
from bench import collectives, facts, report, roofline
from bench.operations import OPERATIONS, Case
from bench.ranks import Ranks


def made_up(mine: float, theirs: float, size: int = 4 << 20) -> dict[str, Any]:
    def row(name: str, time: float) -> dict[str, Any]:
        case = Case(OPERATIONS["all_reduce"], size // 4, "float32", "sum", 0, 2)
        return collectives.row(case, name, np.full(5, time * 1e-6), wrong=0)

    limit = roofline.row(OPERATIONS["all_reduce"], 2, size, np.full(5, 50e-6))
    head = facts.facts("collectives", [], Ranks(pycomm.init()))
    rows = [row("pycomm", mine), row("mpi", theirs)]
    return head | {"rows": rows, "roofline": [limit], "missing": []}


def test_the_report_shows_wins_losses_and_the_roofline() -> None:
    won = report.render(made_up(100, 250), "name")
    assert won.startswith("# name\n\n    python -m bench collectives\n")
    assert "| bytes | pycomm, µs | mpi, µs | busbw, GB/s | mpi / pycomm | of the roofline |" in won
    assert "| 4 M | 100.0 (100.0 to 100.0) | 250.0 (250.0 to 250.0) | 41.94 | 2.50 | 0.50 |" in won
    assert "slower" not in won
    lost = report.render(made_up(100, 50), "name")
    assert "| **0.50** |" in lost
    assert "pycomm is slower at 4 M against mpi." in lost


def test_the_report_leaves_the_roofline_out_where_caches_hold_everything() -> None:
    assert report.render(made_up(100, 250, size=4096), "name").count("| 2.50 |  |") == 1


def test_the_report_is_written_beside_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.json"
    path.write_text(json.dumps(made_up(1, 2)))
    assert report.main([str(path)]) == 0
    printed = capsys.readouterr().out
    assert report.main([str(path), "--write"]) == 0
    assert (tmp_path / "some.md").read_text() == printed.removesuffix("\n")
    path.write_text("{}")
    assert report.main([str(path)]) == 2
    assert "some.json is no result" in capsys.readouterr().err
