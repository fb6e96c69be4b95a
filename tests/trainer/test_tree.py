"""Sums whose grouping does not depend on who adds up what."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from one_process import Branches
from torch import Tensor, nn

from trainer.tree import GradientTree, tree_sum

COUNTS = (1, 2, 4, 8, 16)


def recursive(values: list[float]) -> float:
    if len(values) == 1:
        return values[0]
    half = 1 << (len(values) - 1).bit_length() - 1
    return recursive(values[:half]) + recursive(values[half:])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 64, 100])
def test_numbers_are_added_as_a_tree(count: int) -> None:
    values = np.random.default_rng(count).standard_normal(count).tolist()
    assert tree_sum(values) == recursive(values)


def test_trees_of_parts_make_the_tree_of_the_whole() -> None:
    values = np.random.default_rng(0).standard_normal(64)
    assert len({tree_sum([tree_sum(part) for part in np.split(values, n)]) for n in (1, 2, 4, 8, 64)}) == 1
    assert tree_sum(values) != sum(values.tolist())


def test_sums_of_nothing_and_of_what_is_not_finite() -> None:
    assert tree_sum([]) == 0.0
    assert tree_sum([1.0, math.inf, 2.0]) == math.inf
    assert math.isnan(tree_sum([1.0, math.nan, 2.0]))
    assert tree_sum([1.7e308] * 2) == math.inf


# ---- gradients


class Dot(nn.Module):
    """Its gradient is what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x).sum()


def draws(count: int) -> list[Tensor]:
    return list(torch.randn(count, 5, generator=torch.Generator().manual_seed(count)))


def node(values: list[Tensor]) -> Tensor:
    half = len(values) // 2
    return values[0] if not half else node(values[:half]) + node(values[half:])


@pytest.mark.parametrize("count", COUNTS)
def test_gradients_are_added_as_a_tree_and_hooks_see_their_sum_once(count: int) -> None:
    model, values, seen = Dot(), draws(count), []
    model.weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.grad.clone()))
    tree = GradientTree([model.weight])
    for value in values[:-1]:
        model(value).backward()
        tree.take()
        assert model.weight.grad is None
    seen.clear()
    with tree.completed():
        model(values[-1]).backward()
    assert torch.equal(model.weight.grad, node(values))
    assert [torch.equal(gradient, node(values)) for gradient in seen] == [True]
    model.weight.grad = None
    model(values[0]).backward()  # no hook stays
    assert torch.equal(model.weight.grad, values[0])


@pytest.mark.parametrize("count", COUNTS)
def test_no_more_sums_are_held_than_a_binary_counter_has_digits(count: int) -> None:
    model = Dot()
    tree = GradientTree([model.weight])
    for index, value in enumerate(draws(count)[:-1], 1):
        model(value).backward()
        tree.take()
        assert len(tree._held) == index.bit_count()


def test_nothing_held_registers_no_hook() -> None:
    model = Dot()
    tree = GradientTree([model.weight])
    with tree.completed():
        assert not model.weight._backward_hooks
        model(torch.ones(5)).backward()
    assert model.weight.grad.tolist() == [1.0] * 5


@pytest.mark.parametrize("used", [[(0,), (1,)], [(0, 1), ()], [(), (0, 1)], [(0,), (), (1,), ()]], ids=str)
def test_a_parameter_without_a_gradient_in_some_backwards_counts_as_zero_there(
    used: list[tuple[int, ...]],
) -> None:
    torch.manual_seed(0)
    model = Branches()
    parameters = list(model.parameters())
    x = torch.randn(3, 6)
    tree = GradientTree(parameters)
    for taken in used[:-1]:
        if taken:
            model(x, taken).sum().backward()
        tree.take()
    with tree.completed():
        if used[-1]:
            model(x, used[-1]).sum().backward()
    got = [parameter.grad for parameter in parameters]
    model.zero_grad()
    model(x, (0, 1)).sum().backward()
    for gradient, parameter in zip(got[:4], parameters[:4], strict=True):
        assert torch.equal(gradient, parameter.grad)
    assert got[4:] == [None, None]


def test_minus_zero_beside_nothing_is_zero_as_between_ranks() -> None:
    for first in (True, False):
        one, other = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
        tree = GradientTree([one, other])
        losses = [(one * torch.tensor([-0.0])).sum(), (other * 2).sum()]
        if not first:
            losses.reverse()
        losses[0].backward()
        tree.take()
        with tree.completed():
            losses[1].backward()
        assert math.copysign(1, one.grad.item()) == 1.0
        assert other.grad.item() == 2.0


def test_parameters_with_the_same_gradient_have_sums_of_their_own() -> None:
    one, other = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    tree = GradientTree([one, other])
    for factor in (1.0, 2.0, 4.0):
        ((one + other) * factor).sum().backward()
        tree.take()
    with tree.completed():
        (one * 8.0).sum().backward()
    assert one.grad.tolist() == [15.0] * 3
    assert other.grad.tolist() == [7.0] * 3


def test_a_backward_that_raises_leaves_no_hook() -> None:
    model = Dot()
    tree = GradientTree([model.weight])
    model(torch.ones(5)).backward()
    tree.take()
    with pytest.raises(RuntimeError, match="planted"), tree.completed():
        raise RuntimeError("planted")
    assert not model.weight._backward_hooks
    assert model.weight.grad is None
