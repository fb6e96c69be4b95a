"""Misuse of DataParallel ends in an error on every rank, never in wrong gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from one_process import (
    COUNT,
    backward,
    batch,
    on_ranks,
    small_model,
    summed_loss,
)
from torch import nn

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import DataParallel, TrainerError


def clip(parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()


def drop(parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    optimizer.step()


def again(parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    summed_loss(model, *batch()).backward()


def closure(parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.step(lambda: 0.0)


def unfreeze(parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.late = nn.Parameter(torch.zeros(1))
    model.late.sum().backward()
    optimizer.step()


def count(parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    parallel.global_count = COUNT + 1


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (clip, r"the gradient of .* changed between backward and its reduction: call synchronize\(\)"),
        (drop, r"the gradient of .* changed between backward and its reduction"),
        (again, r"a second gradient for 2.bias .* no_sync\(\)"),
        (closure, r"optimizer.step\(closure\)"),
        (unfreeze, "late has a gradient but needed none"),
        (count, "the scale of a round cannot change"),
    ],
)
@pytest.mark.parametrize("overlap", ["on", "off"])
def test_mistakes_are_errors_and_not_wrong_gradients(mistake: Callable, message: str, overlap: str) -> None:
    def body(
        parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer, comm: Communicator
    ) -> None:
        backward(model, comm)
        with pytest.raises(TrainerError, match=message):
            mistake(parallel, model, optimizer)

    on_ranks(2, small_model, body, overlap=overlap)


def one_rank(make: Callable[[Communicator], object]) -> None:
    run_threads(1, make)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda comm: DataParallel(nn.ReLU(), comm), "no parameter that requires a gradient"),
        (lambda comm: DataParallel(nn.LazyLinear(3), comm), "has no shape yet"),
        (
            lambda comm: DataParallel(nn.Linear(1, 1), comm, loss_reduction="max"),
            "loss_reduction: expected mean or sum",
        ),
        (
            lambda comm: DataParallel(nn.Linear(1, 1), comm, overlap="maybe"),
            "overlap: expected auto, on or off",
        ),
        (lambda comm: DataParallel(nn.Linear(1, 1), comm, global_count=3), "belongs to loss_reduction 'sum'"),
        (
            lambda comm: DataParallel(nn.Linear(1, 1), comm, loss_reduction="sum", global_count=0),
            "global_count: expected 1 or more, got 0",
        ),
        (
            lambda comm: DataParallel(
                nn.Linear(1, 1), comm, torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1)
            ),
            "the optimizer holds 2 tensors that are not parameters",
        ),
        (lambda comm: DataParallel(nn.Linear(1, 1), comm).step(), "made without"),
    ],
)
def test_wrong_arguments_are_refused(make: Callable, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        one_rank(make)


def test_sum_without_a_count_is_an_error_at_the_first_gradient() -> None:
    model = nn.Linear(2, 1)

    def rank(comm: Communicator) -> None:
        with DataParallel(model, comm, loss_reduction="sum"):
            model(torch.ones(1, 2)).sum().backward()

    with pytest.raises(TrainerError, match="needs global_count"):
        one_rank(rank)


def test_sparse_gradients_are_refused_by_name() -> None:
    model = nn.Embedding(5, 2, sparse=True)

    def rank(comm: Communicator) -> None:
        with DataParallel(model, comm):
            model(torch.tensor([1, 2])).sum().backward()

    with pytest.raises(TrainerError, match="the gradient of weight is sparse"):
        one_rank(rank)
