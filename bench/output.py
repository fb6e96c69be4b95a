"""Writing results: columns on rank 0's standard output, and the JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.ranks import Ranks

Row = dict[str, Any]

# Widths of the columns of nccl-tests; the name of the implementation comes last.
WIDTHS = (12, 12, 9, 6, 11, 11, 11, 8, 8, 7)
COLUMNS = ["size", "count", "type", "redop", "p50", "p5", "p95", "algbw", "busbw", "wrong", "implementation"]
UNITS = ["(B)", "(elements)", "", "", "(us)", "(us)", "(us)", "(GB/s)", "(GB/s)", "", ""]


def check_writable(path: Path | None, ranks: Ranks) -> None:
    """Raises BenchError on all ranks, before anything is measured, if rank 0 has no folder for the file."""
    if not ranks.agree(path is None or path.absolute().parent.is_dir()):
        raise BenchError(f"--json {path}: there is no such folder")


def write(path: Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"\nwritten: {path}", flush=True)


def print_head(title: str) -> None:
    print(f"\n# {title}", _line(COLUMNS), _line(UNITS), sep="\n", flush=True)


def print_rows(rows: Sequence[Row], rooflines: Sequence[Row]) -> None:
    """The implementations of one size, then the least time that memory allows."""
    for row in rows:
        cells = [row["bytes"], row["count"], row["dtype"], row["redop"], *_times(row["time_us"])]
        bandwidths = [f"{row[name]:.2f}" for name in ("algbw_gbps", "busbw_gbps")]
        print(_line([*cells, *bandwidths, row["wrong"], row["impl"]]))
    for row in rooflines:
        cells = [row["bytes"], "", "", "", *_times(row["time_us"]), f"{row['bandwidth_gbps']:.2f}"]
        print(_line([*cells, "", "", f"roofline (algbw: of {row['of']})"]))
    print(end="", flush=True)


def _times(time_us: dict[str, float]) -> list[str]:
    return [f"{time_us[name]:.1f}" for name in ("p50", "p5", "p95")]


def _line(cells: Sequence[object]) -> str:
    numbers = "".join(f"{cell:>{width}}" for cell, width in zip(map(str, cells), WIDTHS, strict=False))
    return f"{numbers}  {cells[-1]}"


def print_steps(rows: Sequence[Row]) -> None:
    """Training steps of one model, each beside the step without communication, if that was timed."""
    alone = next((row["step_ms"]["p50"] for row in rows if row["impl"] == "none"), None)
    print(f"\n# {rows[0]['model']}, {rows[0]['ranks']} ranks: ms per step")
    print(f"{'p50':>10}{'p5':>10}{'p95':>10}{'x none':>9}{'MB':>8}{'equal':>7}  implementation")
    for row in rows:
        times = "".join(f"{row['step_ms'][name]:>10.2f}" for name in ("p50", "p5", "p95"))
        ratio = f"{row['step_ms']['p50'] / alone:.3f}" if alone else ""
        equal = {True: "yes", False: "NO", None: ""}[row["equal"]]
        print(f"{times}{ratio:>9}{row['peak_mb']:>8.0f}{equal:>7}  {row['impl']}", flush=True)
