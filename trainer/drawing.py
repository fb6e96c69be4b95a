"""What pictures have in common. Needs matplotlib, which is imported when something is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from trainer.errors import TrainerError
from trainer.files import replacing

FEW = 10  # colours that can be told apart at a glance


def new_figure(width: float, height: float, out: Path) -> Any:
    """Inches. Raises TrainerError where the ending of `out` is no format of pictures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    formats = figure.canvas.get_supported_filetypes()
    if _format(out) not in formats:
        raise TrainerError(f"{out}: expected a picture's ending, one of {', '.join(sorted(formats))}")
    return figure


def write_figure(figure: Any, out: Path) -> None:
    """Raises TrainerError if `out` cannot be written; it is as before then."""
    with replacing(out) as partial:
        figure.savefig(partial, format=_format(out), dpi=130)


def colours(count: int) -> list[Any]:
    """One for each of `count` curves."""
    from matplotlib import colormaps

    if count <= FEW:
        return [colormaps["tab10"](index) for index in range(count)]
    return [colormaps["turbo"](index / (count - 1)) for index in range(count)]


def running_median(values: Sequence[float], window: int) -> list[float]:
    """At each place that of the `window` values around it, fewer at the ends."""
    half = window // 2
    return [median(values[max(0, at - half) : at + half + 1]) for at in range(len(values))]


def _format(out: Path) -> str:
    return out.suffix.removeprefix(".").lower()
