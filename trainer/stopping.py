"""When training ends before its last step: the validation loss no longer falls.

The losses are those of evaluate(), the same bits on all ranks, so that all ranks stop at the same step
without a word about it.
"""

from __future__ import annotations

import math
from typing import Any


class Stopping:
    """Ends training when `patience` evaluations in a row have not brought the loss more than `tolerance`
    below what it was when it last did so. Without patience it only remembers the best step."""

    def __init__(self, patience: int | None = None, tolerance: float = 0.0) -> None:
        self.patience = patience
        self._tolerance = tolerance
        self._reference = math.inf
        self._fruitless = 0
        self.best: tuple[int, float] | None = None  # step and loss

    def observe(self, step: int, loss: float) -> bool:
        """The loss after `step`; whether training ends here."""
        if self.best is None or loss < self.best[1]:
            self.best = step, loss
        if loss < self._reference - self._tolerance:
            self._reference, self._fruitless = loss, 0
        else:
            self._fruitless += 1
        return self.exhausted

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self._fruitless >= self.patience

    def state(self) -> dict[str, Any]:
        """For JSON, which keeps floats to the bit but knows no infinity."""
        reference = self._reference if math.isfinite(self._reference) else None
        return {"reference": reference, "fruitless": self._fruitless, "best": self.best}

    def restore(self, state: dict[str, Any]) -> None:
        """What state() said."""
        self._reference = math.inf if state["reference"] is None else state["reference"]
        self._fruitless = state["fruitless"]
        self.best = state["best"] and (state["best"][0], state["best"][1])

    @property
    def best_step(self) -> int | None:
        return self.best and self.best[0]

    def __str__(self) -> str:
        return (
            f"the validation loss has not improved by more than {self._tolerance:g} "
            f"for {self.patience} evaluation{'s' * (self.patience != 1)}"
        )
