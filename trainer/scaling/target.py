"""Time to accuracy: what an evaluation has to show, and after how much training it does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.errors import TrainerError
from trainer.record import Record


@dataclass(frozen=True)
class Target:
    """What an evaluation has to show: at least `value`, or at most."""

    measure: str
    value: float
    least: bool

    def __str__(self) -> str:
        return f"{self.measure} {'>=' if self.least else '<='} {self.value:g}"

    def reached(self, record: Record) -> dict[str, float] | None:
        """The step after which an evaluation first shows it, on the validation split if there is one, and the
        seconds of all steps up to it. None if none does. Evaluations and the start are not in the time."""
        key = "validation" if any("validation" in row for row in record.rows) else "eval"
        spent_ms = 0.0
        for row in record.rows:
            spent_ms += row["step_ms"]
            got = row.get(key, {}).get(self.measure)
            if got is not None and (got >= self.value if self.least else got <= self.value):
                return {"step": row["step"], "s": spent_ms / 1000}
        return None


def target_of(text: str, measures: Sequence[str]) -> Target:
    """Of `accuracy=0.95`, `loss=0.3` or, for any measure, `NAME>=VALUE` or `NAME<=VALUE`. Raises TrainerError
    for something else, and for a measure that is none of those given."""
    match = re.fullmatch(r"(\w+)(=|>=|<=)([-+.\w]+)", text.replace(" ", ""))
    directions = {"accuracy": ">=", "loss": "<="}
    try:
        if match is None:
            raise ValueError
        name, sign, value = match[1], match[2], float(match[3])
        sign = directions[name] if sign == "=" else sign
    except (ValueError, KeyError):
        raise TrainerError(
            f"target: expected accuracy=VALUE, loss=VALUE, or NAME>=VALUE or NAME<=VALUE, got {text!r}"
        ) from None
    if name not in measures:
        raise TrainerError(f"target: no measure {name!r}; evaluations have {', '.join(measures)}")
    return Target(name, value, sign == ">=")
