"""The parts of the pytest plugin that need no ranks; tests/mpi has the rest."""

from __future__ import annotations

import pytest

from pycomm.pytest_plugin import _difference


def collected(*tests: str, **errors: str) -> dict[str, object]:
    return {"tests": list(tests), "errors": errors}


@pytest.mark.parametrize(
    ("first", "theirs", "said"),
    [
        (collected("a", "b"), collected("a", "b"), ""),
        (collected("a", "b"), collected("b", "a"), "test 1 is a on rank 0 and b on rank 2"),
        (collected("a"), collected("a", "b"), "test 2 is none on rank 0 and b on rank 2"),
        (collected("a", "b"), collected("a"), "test 2 is b on rank 0 and none on rank 2"),
        (collected(), collected(f="why"), "only rank 2 failed to collect f:\nwhy"),
        (collected(f="why"), collected("a"), "only rank 0 failed to collect f:\nwhy"),
        (collected(f="why"), collected(f="its words"), ""),
    ],
)
def test_the_first_difference_is_named(first: dict, theirs: dict, said: str) -> None:
    assert _difference(first, theirs, 2) == said


def test_the_plugin_does_nothing_here(pytestconfig: pytest.Config) -> None:
    assert not pytestconfig.pluginmanager.has_plugin("pycomm_ranks")
