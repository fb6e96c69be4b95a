from __future__ import annotations

import math
import warnings

import pytest
import torch

from trainer.errors import TrainerError
from trainer.schedules import SCHEDULES, make_schedule, replay

LR, STEPS = 0.5, 9


def rates(name: str, warmup: int = 0, steps: int = STEPS, **options: float) -> list[float]:
    """The learning rate of every step of a run."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = make_schedule(name, optimizer, steps, warmup, **options)
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    return seen


def at(name: str, t: int, steps: int) -> float:
    return {
        "constant": 1.0,
        "linear": 1 - t / steps,
        "cosine": (1 + math.cos(math.pi * t / steps)) / 2,
        "step": 0.1 ** (t // -(-steps // 3)),
    }[name]


def test_constant_without_warm_up_is_the_learning_rate_to_the_bit() -> None:
    assert rates("constant") == [LR] * STEPS


@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_its_formula_after_a_straight_rise(name: str, warmup: int) -> None:
    rise = [LR * step / (warmup + 1) for step in range(1, warmup + 1)]
    rest = STEPS - warmup
    expected = rise + [LR * at(name, t, rest) for t in range(rest)]
    assert rates(name, warmup) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_final_is_where_a_fall_ends(name: str) -> None:
    falling = rates(name, final=0.2)
    assert falling == pytest.approx([LR * (0.2 + 0.8 * at(name, t, STEPS)) for t in range(STEPS)], rel=1e-9)
    assert rates(name, final=1.0) == pytest.approx([LR] * STEPS)


def test_step_takes_its_own_length_and_factor() -> None:
    assert rates("step", every=4, gamma=0.5) == [0.5] * 4 + [0.25] * 4 + [0.125]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cosin", 9, 0, {}), "no schedule 'cosin'; there is constant, linear, cosine, step"),
        (("cosine", 9, 9, {}), "warmup_steps: expected 0 to 8, less than the run's, got 9"),
        (("cosine", 9, 0, {"finale": 1}), "schedule 'cosine': .*'finale'; it takes final"),
        (("constant", 9, 0, {"final": 1}), "schedule 'constant': .*'final'; it takes no options"),
        (("cosine", 9, 0, {"final": 2}), "schedule 'cosine': final: expected 0 to 1, got 2"),
        (("linear", 9, 0, {"final": -1}), "schedule 'linear'"),
        (("step", 9, 0, {"every": 0}), "schedule 'step': every: expected 1 or more, got 0"),
    ],
)
def test_what_a_schedule_cannot_do_is_refused(arguments: tuple, message: str) -> None:
    name, steps, warmup, options = arguments
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    with pytest.raises(TrainerError, match=message):
        make_schedule(name, optimizer, steps, warmup, **options)


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_replayed_schedule_has_the_rates_of_one_that_was_there_to_the_bit(name: str, warmup: int) -> None:
    expected = rates(name, warmup)
    for done in range(STEPS):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
        seen = []
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            schedule = make_schedule(name, optimizer, STEPS, warmup)
            replay(schedule, optimizer, done)
            for _ in range(done, STEPS):
                seen.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                schedule.step()
        assert seen == expected[done:]
