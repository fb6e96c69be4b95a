"""The table of the worked examples: what was expected, what was found, at how many ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    example: str
    ranks: str
    quantity: str
    expected: str
    found: str

    def cells(self) -> tuple[str, ...]:
        return self.example, self.ranks, self.quantity, self.expected, self.found


HEADER = Row("example", "N", "quantity", "expected", "found")


class Table:
    """Asserts what one example must show, and writes it down first, so that a failure is in the table too."""

    def __init__(self, example: str, rows: list[Row]) -> None:
        self._example = example
        self._rows = rows

    def equal(self, quantity: str, expected: Any, found: Any, *, ranks: int) -> None:
        self._add(quantity, _shown(expected), found, ranks, found == expected)

    def near(self, quantity: str, expected: float, found: float, *, within: float, ranks: int) -> None:
        """|found - expected| <= within."""
        shown = f"{_shown(expected)} ± {within:.3g}"
        self._add(quantity, shown, found, ranks, abs(found - expected) <= within)

    def at_most(self, quantity: str, limit: float, found: float, *, ranks: int) -> None:
        self._add(quantity, f"≤ {_shown(limit)}", found, ranks, found <= limit)

    def at_least(self, quantity: str, limit: float, found: float, *, ranks: int) -> None:
        self._add(quantity, f"≥ {_shown(limit)}", found, ranks, found >= limit)

    def _add(self, quantity: str, expected: str, found: Any, ranks: int, holds: bool) -> None:
        mark = "" if holds else "  ✗"
        self._rows.append(Row(self._example, str(ranks), quantity, expected, _shown(found) + mark))
        assert holds, f"{quantity} at N = {ranks}: expected {expected}, found {_shown(found)}"


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """The table, its columns aligned."""
    cells = [row.cells() for row in (HEADER, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
