"""Rows of metrics as scalars for TensorBoard, in a run's folder: `fit --tensorboard`. Needs tensorboard.

The files are written anew at the start, from the rows that a resumed run goes on with: what a killed run had
written beyond its checkpoint would else be shown twice, and what it had not yet written would be missing.
metrics.jsonl stays the record; this is a view of it. (Rows written anew have the time of that writing.)
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.errors import EXTRAS, TrainerError
from trainer.files import writing
from trainer.rows import SPLIT_OF

FOLDER = "tensorboard"  # in a run's folder
FLUSH_S = 10  # how old a row is, at most, that the files do not have
EVENTS = "events.out.tfevents.*"  # what torch's writer calls its files


def check_installed() -> None:
    """Raises TrainerError where the package is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise TrainerError(f"tensorboard needs the package tensorboard: {EXTRAS['tensorboard']}")


class Board:
    """One process writes it. Raises TrainerError, here and in add(), for what cannot be written; as a thread
    does the writing, that may be said of a later row."""

    def __init__(self, out: Path, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        from torch.utils.tensorboard import SummaryWriter

        clear(out)
        self._folder = out / FOLDER
        with writing(self._folder):
            self._writer = SummaryWriter(self._folder, flush_secs=FLUSH_S)
        for row in rows:
            self.add(row["step"], row)

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """The numbers of a row, or of a part of it."""
        with writing(self._folder):
            for tag, value in scalars(values):
                self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        with writing(self._folder):
            self._writer.close()


def clear(out: Path) -> None:
    """Removes what an earlier run in that folder wrote. Raises TrainerError if that fails."""
    for old in (out / FOLDER).glob(EVENTS):
        with writing(old):
            old.unlink()


def scalars(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tags and numbers: `training/loss`, `validation/accuracy`, `test/loss` and so on."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            split = SPLIT_OF.get(name, name)
            yield from ((f"{split}/{inner}", number) for inner, number in value.items() if _is_number(number))
        elif _is_number(value) and name != "step":
            yield f"training/{name}", value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
