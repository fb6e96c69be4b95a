from __future__ import annotations

import json

import pytest

from trainer.stopping import Stopping


def stops_at(losses: list[float], patience: int | None, tolerance: float = 0.0) -> int | None:
    stopping = Stopping(patience, tolerance)
    return next((step for step, loss in enumerate(losses, 1) if stopping.observe(step, loss)), None)


@pytest.mark.parametrize(
    ("losses", "patience", "tolerance", "expected"),
    [
        ([3, 2, 1, 0], 1, 0.0, None),
        ([3, 2, 2, 2], 1, 0.0, 3),
        ([3, 2, 2, 2], 2, 0.0, 4),
        ([3, 4, 2, 4, 3], 2, 0.0, 5),  # an improvement starts the count anew
        ([3, 2.5, 2.25, 2], 1, 0.5, 2),  # exactly the tolerance is not more than it
        ([3, 2.75, 2.25, 2], 2, 0.5, None),  # but small improvements add up: 2.25 is 0.75 below 3
        ([3, 2.75, 2.75, 2], 2, 0.5, 3),
        ([3, 3, 3, 3], None, 0.0, None),
        ([3], 1, 0.0, None),
    ],
)
def test_patience_counts_evaluations_without_improvement(
    losses: list[float], patience: int | None, tolerance: float, expected: int | None
) -> None:
    assert stops_at(losses, patience, tolerance) == expected


def test_the_best_step_is_the_first_of_the_lowest_losses_whatever_the_tolerance() -> None:
    stopping = Stopping(None, 10.0)
    assert stopping.best is None
    for step, loss in enumerate([3.0, 1.0, 2.0, 1.0], 1):
        stopping.observe(step, loss)
    assert stopping.best == (2, 1.0)


def test_the_reason_says_by_how_much_and_for_how_long() -> None:
    assert str(Stopping(3, 0.01)).endswith("not improved by more than 0.01 for 3 evaluations")
    assert str(Stopping(1)).endswith("not improved by more than 0 for 1 evaluation")


@pytest.mark.parametrize("patience", [None, 2])
def test_what_is_restored_stops_where_the_other_would(patience: int | None) -> None:
    losses = [3, 0.1 + 0.2, 2, 0.25, 1, 0.7, 0.2]
    for done in range(len(losses)):
        first, second = Stopping(patience, 0.1), Stopping(patience, 0.1)
        for step in range(done):
            first.observe(step, losses[step])
        second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
        assert (second.best, second.exhausted) == (first.best, first.exhausted)
        for step in range(done, len(losses)):
            assert second.observe(step, losses[step]) == first.observe(step, losses[step])
        assert second.best == first.best
