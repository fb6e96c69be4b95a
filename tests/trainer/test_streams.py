"""Random numbers of a step: the same again, and no stream's are another's."""

from __future__ import annotations

import itertools

import torch

from trainer import streams


def drawn(seed: int, step: int, stream: int) -> list[float]:
    streams.begin(seed, step, stream)
    return torch.rand(4).tolist()


def test_a_step_draws_the_same_whatever_was_drawn_before() -> None:
    first = drawn(3, 5, 1)
    torch.rand(100)
    assert drawn(3, 5, 1) == first


def test_seeds_steps_and_streams_draw_their_own() -> None:
    assert len({tuple(drawn(*case)) for case in itertools.product(range(3), repeat=3)}) == 27
