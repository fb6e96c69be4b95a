"""The rows of a scaling study, as scaling.json has them: what each fit left, beside the first one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError
from trainer.record import read_record
from trainer.scaling.target import Target

Row = dict[str, Any]
Results = Mapping[str, Any]


def outcome(modes: Sequence[str], ranks: int, run: Path, error: str | None, target: Target | None) -> Row:
    """What a fit left in its folder. `error`: why it failed, if it did."""
    row: Row = {"modes": list(modes), "ranks": ranks, "run": str(run), "error": error}
    if error is not None:
        return row
    try:
        record = read_record(run)
    except TrainerError as problem:
        return row | {"error": str(problem)}
    return row | {
        "global_batch": max(each["samples"] for each in record.rows),
        "steps": record.rows[-1]["step"],
        "step_ms": record.step_ms,
        "samples_per_s": record.samples_per_s,
        "exposed_ms": record.exposed_ms,
        "held_bytes": sum(record.held_bytes.values()) or None,
        "peak_rss_bytes": (record.summary or {}).get("peak_rss_bytes"),
        "loss_last": record.rows[-1]["loss"],
        "to_target": target.reached(record) if target else None,
    }


def by_mode(results: Results) -> dict[str, list[Row]]:
    """The rows of each mode by ranks, with `speedup` and `efficiency`: samples per second over those of the
    smallest number of ranks, and that over how many times as many ranks there are. None without that run."""
    modes = list(dict.fromkeys(mode for row in results["runs"] for mode in row["modes"]))
    found: dict[str, list[Row]] = {}
    for mode in modes:
        rows = sorted((row for row in results["runs"] if mode in row["modes"]), key=lambda row: row["ranks"])
        first = rows[0]
        found[mode] = []
        for row in rows:
            known = not first["error"] and not row["error"]
            speedup = row["samples_per_s"] / first["samples_per_s"] if known else None
            efficiency = None if speedup is None else speedup * first["ranks"] / row["ranks"]
            found[mode].append(row | {"speedup": speedup, "efficiency": efficiency})
    return found
