"""What a run's folder says of the run: the rows, and what summary.json and config.yaml add where they are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from trainer.config import CONFIG_FILE, FitConfig, read_config
from trainer.errors import TrainerError
from trainer.files import reading
from trainer.metrics import ROWS_FILE, SUMMARY_FILE, read_summary
from trainer.rows import SPLIT_OF, read_rows

Row = dict[str, Any]
NUMBERS = ("step", "loss", "samples", "step_ms", "exposed_comm_ms")  # of a row


@dataclass(frozen=True)
class Record:
    """`summary` is None where a run was interrupted or still goes on, `config` where its file is missing."""

    path: Path
    rows: list[Row]
    summary: dict[str, Any] | None
    config: FitConfig | None

    @property
    def samples_per_s(self) -> float | None:
        """Of all ranks, the median step; evaluations are not in it."""
        return middle(rate(row) for row in self.rows)

    @property
    def step_ms(self) -> float | None:
        return middle(row.get("step_ms") for row in self.rows)

    @property
    def exposed_ms(self) -> float | None:
        """From the end of backward to the last reduction, the median step."""
        return middle(row.get("exposed_comm_ms") for row in self.rows)

    @property
    def held_bytes(self) -> dict[str, int]:
        """Parameters, gradients and optimizer state of the rank with the most; empty where unknown."""
        memory = (self.summary or {}).get("memory") or {}
        return dict(memory.get("bytes_per_rank", {}))


def read_record(path: Path) -> Record:
    """Raises TrainerError for a folder without rows, and for a file in it that is broken."""
    summary, config = path / SUMMARY_FILE, path / CONFIG_FILE
    with reading(path):
        rows = read_rows(path / ROWS_FILE)
        for row in rows:
            _check(row, path / ROWS_FILE)
        return Record(
            path,
            rows,
            read_summary(summary) if summary.is_file() else None,
            read_config(config) if config.is_file() else None,
        )


def _check(row: Row, path: Path) -> None:
    """What is drawn is a number, where it is there."""
    evaluations = {f"{key}.loss": row[key].get("loss") for key in SPLIT_OF if isinstance(row.get(key), dict)}
    for name, value in {**{name: row.get(name, 0) for name in NUMBERS}, **evaluations}.items():
        if not isinstance(value, int | float):
            raise TrainerError(f"{path}: expected a number as {name} of step {row['step']}, got {value!r}")


def read_records(paths: Iterable[Path]) -> tuple[list[Record], list[str]]:
    """Those that can be read, in their order; and, of each other one, what is wrong with it."""
    records, broken = [], []
    for path in paths:
        try:
            records.append(read_record(path))
        except TrainerError as error:
            broken.append(str(error))
    return records, broken


def names_of(records: Sequence[Record]) -> list[str]:
    """The folders' names, without the part that they have in common."""
    paths = [record.path.absolute() for record in records]
    common = os.path.commonpath([path.parent for path in paths])
    return [os.path.relpath(path, common) for path in paths]


def rate(row: Row) -> float | None:
    """Samples per second of one step."""
    return 1000 * row["samples"] / row["step_ms"] if row.keys() >= {"samples", "step_ms"} else None


def middle(values: Iterable[float | None]) -> float | None:
    """The median of the values that are there."""
    known = [value for value in values if value is not None]
    return median(known) if known else None
