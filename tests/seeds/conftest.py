"""Worked examples: small trainings whose numbers are known beforehand, one file for each.

What an example must show goes through the fixture `table`: every call is an assertion, and a row of the table
that ends the report, with the numbers expected and found.
"""

from __future__ import annotations

import pytest

from tests.seeds.table import Row, Table, lines

torch = pytest.importorskip("torch", reason="the trainer needs torch")

ROWS = pytest.StashKey[list[Row]]()


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Table:
    example = request.path.stem.removeprefix("test_").replace("_", " ")
    return Table(example, request.config.stash.setdefault(ROWS, []))


@pytest.fixture(autouse=True)
def one_compute_thread() -> None:
    torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    terminalreporter.section("worked examples")
    for line in lines(rows):
        terminalreporter.write_line(line)
