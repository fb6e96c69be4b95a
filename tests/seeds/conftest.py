"""Worked examples: small trainings whose numbers are known beforehand, one file for each.

What an example must show goes through the fixture `table`: every call is an assertion, and a row of the table
that ends the report, with the numbers expected and found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch")

TIME_LIMIT_S = 60


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
ROWS = pytest.StashKey[list[Row]]()


class Table:
    """Asserts what one example must show, and writes it down first, so that a failure is in the table too."""

    def __init__(self, example: str, rows: list[Row]) -> None:
        self._example = example
        self._rows = rows

    def equal(self, quantity: str, expected: Any, found: Any, *, ranks: int | str) -> None:
        self._add(quantity, _shown(expected), found, ranks, found == expected)

    def near(self, quantity: str, expected: float, found: float, *, within: float, ranks: int | str) -> None:
        """|found - expected| <= within."""
        shown = f"{_shown(expected)} ± {within:.3g}"
        self._add(quantity, shown, found, ranks, abs(found - expected) <= within)

    def at_most(self, quantity: str, limit: float, found: float, *, ranks: int | str) -> None:
        self._add(quantity, f"≤ {_shown(limit)}", found, ranks, found <= limit)

    def at_least(self, quantity: str, limit: float, found: float, *, ranks: int | str) -> None:
        self._add(quantity, f"≥ {_shown(limit)}", found, ranks, found >= limit)

    def _add(self, quantity: str, expected: str, found: Any, ranks: int | str, holds: bool) -> None:
        mark = "" if holds else "  ✗"
        self._rows.append(Row(self._example, str(ranks), quantity, expected, _shown(found) + mark))
        assert holds, f"{quantity} at N = {ranks}: expected {expected}, found {_shown(found)}"


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.7g}" if isinstance(value, float) else str(value)


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Table:
    example = request.path.stem.removeprefix("test_").replace("_", " ")
    return Table(example, request.config.stash.setdefault(ROWS, []))


@pytest.fixture(autouse=True)
def one_compute_thread() -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "seeds" and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIME_LIMIT_S))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    terminalreporter.section("worked examples")
    widths = [max(map(len, column)) for column in zip(*(row.cells() for row in (HEADER, *rows)), strict=True)]
    for row in (HEADER, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row.cells(), widths, strict=True))
        terminalreporter.write_line("  ".join(cells).rstrip())
