"""Short runs of fit on ranks that are threads, on the data of own_data.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pycomm.testing import run_threads
from trainer import FitConfig, fit

OPTIONS: dict[str, Any] = {
    "model": "own_data:model", "optimizer": "sgd", "lr": 0.5, "global_batch": 16, "threads": 1, "steps": 17,
}  # fmt: skip


def train(size: int, out: Path, data: str, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Summary and rows."""
    config = FitConfig(**{**OPTIONS, "data": f"own_data:{data}", "out": out, **options})
    summary = run_threads(size, lambda comm: fit(config, comm))[0]
    return summary, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(rows: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] for row in rows]
