from __future__ import annotations

import pytest
import torch

from trainer.errors import TrainerError
from trainer.splits import hold_out, stratified


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_test_split_that_leaves_nothing_is_refused(fraction: float) -> None:
    with pytest.raises(TrainerError, match="test_fraction: expected a number between 0 and 1"):
        hold_out(torch.arange(10), fraction)


@pytest.mark.parametrize("fraction", [1.0, -0.1])
def test_a_validation_split_that_is_no_share_is_refused(fraction: float) -> None:
    with pytest.raises(TrainerError, match="validation_fraction: expected a number between 0 and 1"):
        hold_out(torch.arange(10), 0.2, fraction)


def test_splits_that_leave_nothing_for_training_are_refused() -> None:
    with pytest.raises(TrainerError, match=r"nothing is left for training: of 10 samples, .*0.6 takes 6 and"):
        hold_out(torch.arange(10), 0.6, 0.4)


def test_a_small_split_has_at_least_one_sample() -> None:
    assert [len(part) for part in hold_out(torch.arange(3), 0.01)] == [2, 0, 1]
    assert [len(part) for part in hold_out(torch.arange(3), 0.99)] == [1, 0, 2]
    assert [len(part) for part in hold_out(torch.arange(3), 0.01, 0.01)] == [1, 1, 1]


def test_the_parts_keep_their_order_and_share_nothing() -> None:
    train, validation, test = hold_out(torch.arange(103), 0.2, 0.1)
    assert torch.cat([train, validation, test]).tolist() == list(range(103))
    assert (len(validation), len(test)) == (10, 21)


def test_validation_comes_out_of_training_alone() -> None:
    assert torch.equal(hold_out(torch.arange(103), 0.2)[2], hold_out(torch.arange(103), 0.2, 0.3)[2])


def test_a_stratified_split_has_the_same_share_of_every_label() -> None:
    labels = torch.arange(60) % 3
    parts = stratified(labels, 5, 0.2, 0.1)
    assert [labels[part].bincount().tolist() for part in parts] == [[14] * 3, [2] * 3, [4] * 3]
    assert sorted(torch.cat(parts).tolist()) == list(range(60))
    assert all(map(torch.equal, parts, stratified(labels, 5, 0.2, 0.1)))
    assert not torch.equal(parts[2], stratified(labels, 6, 0.2, 0.1)[2])
