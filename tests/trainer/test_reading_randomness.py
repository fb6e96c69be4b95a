from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from trainer.reading.randomness import Draws


def draw() -> tuple[float, float, float]:
    return torch.rand(1).item(), float(np.random.rand()), random.random()


def test_equal_words_draw_equal_numbers_and_others_do_not() -> None:
    found = []
    for words in [(0, 1, 2), (0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 1, 3)]:
        with Draws(*words).drawing():
            found.append(draw())
    assert found[0] == found[1]
    assert len(set(found)) == 4
    assert all(len({one[i] for one in found}) == 4 for i in range(3))  # each of the three generators


def test_others_go_on_as_if_nothing_had_drawn_between() -> None:
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = draw(), draw()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    got = [draw()]
    with pytest.raises(KeyError), Draws(3).drawing():
        draw()
        raise KeyError
    got.append(draw())
    assert tuple(got) == expected


def test_draws_go_on_where_they_ended() -> None:
    whole, parts = Draws(5), Draws(5)
    with whole.drawing():
        expected = [draw(), draw()]
    got = []
    for _ in range(2):
        with parts.drawing():
            got.append(draw())
        draw()  # another's
    assert got == expected
