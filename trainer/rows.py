"""metrics.jsonl: a row of JSON per step.

It has: step (from 1), epoch (from 0), loss (mean over the step's samples or tokens, before the update),
samples (of all ranks), lr, step_ms, exposed_comm_ms; where gradients are clipped grad_norm, their norm
before; with a loss scale loss_scale, and taken, whether the step was or its gradients had overflowed; and
after an evaluation `validation` or `eval`. Times are rank 0's; step_ms is batch to update, without
evaluation; exposed_comm_ms is from the end of backward to the last reduction.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError
from trainer.files import replacing, writing

SPLIT_OF = {"validation": "validation", "eval": "test"}  # what rows and summary call the splits' evaluations


class RowWriter:
    """Writes a file that is whole up to the last row at any time, also on a full disk."""

    def __init__(self, path: Path, rows: Sequence[dict[str, Any]] = ()) -> None:
        """The file has those rows then, or what it had before. Raises TrainerError if it cannot be opened."""
        self._path = path
        self._bytes = 0
        if rows:
            _write(path, rows)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab" if rows else "wb", buffering=0)
            self._bytes = self._file.tell()

    def add(self, row: dict[str, Any]) -> None:
        """Raises TrainerError if it cannot be written; the file then ends with the row before."""
        line = _line(row)
        with writing(self._path):
            try:
                left = memoryview(line)
                while left:
                    left = left[self._file.write(left) :]
            except OSError:
                with suppress(OSError):  # of a device; the first error says more
                    self._file.truncate(self._bytes)
                raise
        self._bytes += len(line)

    def rewrite(self, rows: Sequence[dict[str, Any]]) -> None:
        """The file has those rows in the place of its own, or, where it raises TrainerError, still its own.
        Not while another thread is in sync()."""
        _write(self._path, rows)
        with writing(self._path):
            self._file.close()
            self._file = self._path.open("ab", buffering=0)
            self._bytes = self._file.tell()

    def sync(self) -> None:
        """Blocks until the rows are on the disk. May be called in another thread than the others."""
        with writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with writing(self._path):
            self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows; raises TrainerError for a file that is missing, without rows, or has something else in it."""
    if not path.is_file():
        raise TrainerError(f"{path} does not exist: expected the folder given to fit as --out")
    rows = [
        _row(line, f"{path}, line {number}") for number, line in enumerate(path.open(errors="replace"), 1)
    ]
    if not rows:
        raise TrainerError(f"{path} has no rows: the run ended before its first step was done")
    return rows


def read_rows_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows up to that step's; what follows is not looked at. No rows if there is no file.

    Raises TrainerError if a row is missing or is none.
    """
    rows: list[dict[str, Any]] = []
    if not path.is_file():
        return rows
    for number, line in enumerate(path.open(errors="replace"), 1):
        rows.append(_row(line, f"{path}, line {number}"))
        got, expected = rows[-1]["step"], rows[0]["step"] + number - 1
        if got != expected:
            raise TrainerError(f"{path}, line {number}: expected the row of step {expected}, got {got}'s")
        if got == step:
            return rows
    raise TrainerError(f"{path}: expected rows up to step {step}, got {len(rows)} rows")


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with replacing(path) as partial:
        partial.write_bytes(b"".join(map(_line, rows)))


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise TrainerError(
            f"{where}: expected a row of JSON, got {line.rstrip()[:40]!r} ({error})"
        ) from error
    if not isinstance(row, dict) or not row.keys() >= {"step", "loss"}:
        raise TrainerError(f"{where}: expected a row with step and loss, got {line.rstrip()[:40]!r}")
    return row
