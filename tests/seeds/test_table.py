"""The table of the worked examples fails where a number is wrong, and shows it."""

from __future__ import annotations

from collections.abc import Callable
from math import nan

import pytest

from tests.seeds.table import Row, Table, lines


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        (lambda table, found: table.equal("x", 2.0, found, ranks=3), "2"),
        (lambda table, found: table.near("x", 2.0, found, within=0.5, ranks=3), "2 ± 0.5"),
        (lambda table, found: table.at_most("x", 2.5, found, ranks=3), "≤ 2.5"),
        (lambda table, found: table.at_least("x", -1.0, -found, ranks=3), "≥ -1"),
    ],
)
@pytest.mark.parametrize("wrong", [2.75, nan])
def test_a_wrong_number_fails_and_is_in_the_table(
    check: Callable[[Table, float], None], expected: str, wrong: float
) -> None:
    rows: list[Row] = []
    with pytest.raises(AssertionError, match="x at N = 3: expected"):
        check(Table("example", rows), wrong)
    assert rows[0].expected == expected and rows[0].found.endswith("✗")


def test_right_numbers_make_aligned_rows() -> None:
    rows: list[Row] = []
    table = Table("example", rows)
    table.equal("count", 12_000, 12_000, ranks=2)
    table.near("a longer quantity", 1.0, 1.25, within=0.25, ranks=100)
    assert list(lines(rows)) == [
        "example  N    quantity           expected  found",
        "example  2    count              12,000    12,000",
        "example  100  a longer quantity  1 ± 0.25  1.25",
    ]
