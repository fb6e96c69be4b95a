"""Markdown tables that read well as plain text too: columns are padded."""

from __future__ import annotations

from collections.abc import Sequence

UNKNOWN = ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Of cells; the first `left` columns are text, the others are numbers and stand to the right."""
    widths = [max(3, *(len(line[column]) for line in [head, *rows])) for column in range(len(head))]
    rule = ["-" * width if at < left else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    return "\n".join(_line(cells, widths, left) for cells in [head, rule, *rows])


def number(value: float | None, digits: int = 0) -> str:
    return UNKNOWN if value is None else f"{value:,.{digits}f}"


def percent(part: float | None, whole: float | None) -> str:
    return f"{100 * part / whole:.0f} %" if part is not None and whole else UNKNOWN


def megabytes(count: float | None) -> str:
    """MB are 10^6 bytes."""
    return number(None if count is None else count / 1e6, 2 if count is not None and count < 1e8 else 0)


def _line(cells: Sequence[str], widths: Sequence[int], left: int) -> str:
    padded = [
        cell.ljust(width) if at < left else cell.rjust(width)
        for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"
