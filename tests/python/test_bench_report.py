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

    limit = roofline.Memory(2).row(OPERATIONS["all_reduce"], size, np.full(5, 50e-6))
    head = facts.facts("collectives", [], Ranks(pycomm.init()))
    rows = [row("pycomm", mine), row("mpi", theirs)]
    return head | {"rows": rows, "roofline": [limit], "missing": []}


def test_the_report_shows_wins_losses_and_the_roofline() -> None:
    won = report.render(made_up(100, 250), "name")
    assert won.startswith("# name\n\n    python -m bench collectives\n")
    assert "| bytes | pycomm, µs | mpi, µs | mpi / pycomm |" in won
    assert "| 4 M | 100.0 (100.0 to 100.0) | 250.0 (250.0 to 250.0) | 2.50 |" in won
    assert "| bytes | pycomm, GB/s | mpi, GB/s | memory, GB/s |" in won
    assert "| 4 M | 41.94 (0.50) | 16.78 (0.20) | 335.54 |" in won
    assert "slower" not in won
    lost = report.render(made_up(100, 50), "name")
    assert "| **0.50** |" in lost
    assert "pycomm is slower at 4 M against mpi." in lost


def test_the_report_leaves_the_roofline_out_where_caches_hold_everything() -> None:
    assert "| 4 K | 0.04 | 0.02 |  |" in report.render(made_up(100, 250, size=4096), "name")


def test_between_nodes_the_report_counts_in_bits_of_the_wire() -> None:
    sizes = {"bytes": 4 << 20, "time_us": {"p5": 36e3, "p50": 36e3, "p95": 36e3}, "bandwidth_gbps": 0.114}
    limit = {"op": "all_reduce", "of": "the wire", **sizes}
    over = {"nodes": 2, "rate": "1gbit", "roofline": [limit]}
    text = report.render(made_up(40e3, 60e3) | over, "name")
    assert "| bytes | pycomm, Gbit/s | mpi, Gbit/s | the wire, Gbit/s |" in text
    assert "| 4 M | 0.84 (0.90) | 0.56 (0.60) | 0.91 |" in text
    assert "on 2 nodes with links of 1gbit" in text


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


def test_the_report_draws_bandwidths_and_times(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "some.json"
    path.write_text(json.dumps(made_up(100, 250)))
    assert report.main([str(path), "--plot"]) == 0
    drawn = (tmp_path / "some.svg").read_text()
    for word in ("all_reduce; ranks: 1, nodes: 1", "pycomm", "mpi", "at the least, by memory", "GB/s"):
        assert word in drawn
    assert report.main([str(path), "--plot"]) == 0
    assert (tmp_path / "some.svg").read_text() == drawn


def trained(impl: str, p50: float, peak_mb: float) -> dict[str, Any]:
    times = {"p5": p50 - 1, "p50": p50, "p95": p50 + 2}
    return {
        "model": "mlp",
        "impl": impl,
        "step_ms": times,
        "peak_mb": peak_mb,
        "optimizer": "adam",
        "equal": True,
    }


def test_the_report_draws_the_time_and_memory_of_training_steps(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [trained("ddp-gloo-fp16", 30, 70), trained("none", 10, 50), trained("zero2", 12.5, 40)]
    result = facts.facts("training", [], Ranks(pycomm.init())) | {"rows": rows}
    path = tmp_path / "steps.json"
    path.write_text(json.dumps(result))
    assert report.main([str(path), "--plot"]) == 0
    drawn = (tmp_path / "steps.svg").read_text()
    for word in (
        "mlp, adam; ranks: 1",
        "ddp-gloo-fp16",
        "12.5, 1.25 of none",
        "30.0, 3.00 of none",
        "ms per step",
    ):
        assert word in drawn, word
    assert drawn.index(">zero2<") < drawn.index(">ddp-gloo-fp16<")  # the fastest on top
