"""What a run leaves behind: metrics.jsonl (rows.py), summary.json; and a progress display. Rank 0 only."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

from tqdm import tqdm

from trainer.errors import TrainerError
from trainer.files import replacing
from trainer.rows import SPLIT_OF, RowWriter
from trainer.tensorboard import Board

LINES = 10  # progress lines of a run where there is no terminal
ROWS_FILE, SUMMARY_FILE = "metrics.jsonl", "summary.json"  # in a run's folder


class Metrics:
    """Keeps the rows; writes and shows them on rank 0. Raises TrainerError, there, if out cannot be written.

    A row that cannot be written is not raised but kept as `trouble`, for all ranks to be told together; no
    row is written after it.
    """

    def __init__(
        self,
        out: Path,
        rank: int,
        steps: int,
        rows: Sequence[dict[str, Any]] = (),
        *,
        tensorboard: bool = False,
    ) -> None:
        """`rows`: those of the run that this one goes on with. `tensorboard`: numbers go there too."""
        self.rows = list(rows)
        self.trouble: TrainerError | None = None
        self._steps = steps
        self._writes = rank == 0
        if not self._writes:
            return
        self._summary = out / SUMMARY_FILE
        self._file = RowWriter(out / ROWS_FILE, rows)
        self._board = Board(out, rows) if tensorboard else None
        self._bar = tqdm(total=steps, initial=len(rows), unit="step", disable=None, dynamic_ncols=True)

    def add(self, row: dict[str, Any]) -> None:
        """Appends one step's row."""
        self.rows.append(row)
        if not self._writes or self.trouble:
            return
        try:
            self._file.add(row)
            if self._board:
                self._board.add(row["step"], row)
        except TrainerError as error:
            self.trouble = error
        if self._bar.disable:
            self._show_line(row)
        else:
            self._bar.set_postfix(loss=f"{row['loss']:.4f}", **_rounded(row), refresh=False)
            self._bar.update()

    def amend(self, values: dict[str, Any]) -> None:
        """Gives the last row what became known after it was added."""
        self.rows[-1] = self.rows[-1] | values
        if not self._writes or self.trouble:
            return
        try:
            self._file.rewrite(self.rows)
            if self._board:
                self._board.add(self.rows[-1]["step"], values)
        except TrainerError as error:
            self.trouble = error
        if self._bar.disable:
            print(f"step {self.rows[-1]['step']}/{self._steps}{_shown(values)}", file=sys.stderr, flush=True)
        else:
            self._bar.set_postfix(loss=f"{self.rows[-1]['loss']:.4f}", **_rounded(self.rows[-1]))

    def sync(self) -> None:
        """Blocks until the rows are on the disk. Rank 0 only, in any thread. Raises TrainerError if one is
        not."""
        if self.trouble:
            raise self.trouble
        self._file.sync()

    def write_summary(self, summary: dict[str, Any]) -> None:
        """After the last row. Raises TrainerError, on rank 0, if it, or a row, cannot be written."""
        if self.trouble:
            raise self.trouble
        if self._writes:
            self._close()
            with replacing(self._summary) as partial:
                partial.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")

    def timing(self) -> dict[str, float]:
        """The timings of the run so far, for the summary."""
        step_ms = [row["step_ms"] for row in self.rows]
        return {
            "step_ms_median": median(step_ms),
            "samples_per_s": sum(row["samples"] for row in self.rows) / (sum(step_ms) / 1000),
            "exposed_comm_ms_median": median(row["exposed_comm_ms"] for row in self.rows),
        }

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writes:
            self._bar.close()
            with contextlib.suppress(TrainerError):  # of a run without a summary: its first error says more
                self._close()

    def _close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()

    def _show_line(self, row: dict[str, Any]) -> None:
        step = row["step"]
        evaluated = _shown(row)
        if evaluated or step == 1 or step == self._steps or step % max(1, self._steps // LINES) == 0:
            line = f"step {step}/{self._steps}  loss {row['loss']:.4f}  {row['step_ms']:.1f} ms{evaluated}"
            print(line, file=sys.stderr, flush=True)


def read_summary(path: Path) -> dict[str, Any]:
    """What write_summary() wrote. Raises TrainerError for something else."""
    try:
        summary = json.loads(path.read_text())
    except ValueError as error:
        raise TrainerError(f"{path}: expected a summary in JSON: {error}") from error
    if not isinstance(summary, dict) or "steps" not in summary:
        raise TrainerError(f"{path}: expected a summary with steps")
    return summary


def _shown(row: dict[str, Any]) -> str:
    return "".join(f"  {name} {value}" for name, value in _rounded(row).items())


def _rounded(row: dict[str, Any]) -> dict[str, str]:
    return {
        f"{split}_{name}": f"{value:.4f}"
        for split in SPLIT_OF
        for name, value in row.get(split, {}).items()
        if name != "count"
    }
