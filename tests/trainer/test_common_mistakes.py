"""What beginners get wrong in a data-parallel loop of their own: it is noticed, and named."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

import pycomm
from pycomm.testing import run_threads
from trainer import DataParallel, TrainerError


def train(comm: pycomm.Communicator, part: Callable, between: Callable | None = None, steps: int = 3) -> None:
    """Linear regression, each rank on part(samples, comm)."""
    random = torch.Generator().manual_seed(0)
    inputs, targets = (part(torch.randn(12, width, generator=random), comm) for width in (4, 1))
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with DataParallel(model, comm, optimizer) as parallel:
        for step in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
            if between is not None:
                between(parallel, model, step, comm)


def own(samples: torch.Tensor, comm: pycomm.Communicator) -> torch.Tensor:
    return samples.tensor_split(comm.size)[comm.rank]


def same(samples: torch.Tensor, comm: pycomm.Communicator) -> torch.Tensor:
    return samples


def test_training_all_ranks_on_the_same_samples_is_noticed_once() -> None:
    with pytest.warns(
        UserWarning, match="all 3 ranks have bit-identical gradients in the first step"
    ) as seen:
        run_threads(3, train, same)
    assert len(seen) == 1 and "tensor_split" in str(seen[0].message)


@pytest.mark.parametrize(
    ("ranks", "part"),
    [(3, own), (1, same), (2, lambda samples, comm: samples if comm.rank else samples + 1e-6)],
    ids=["own samples", "one rank", "all but equal samples"],
)
def test_other_samples_or_no_other_rank_say_nothing(ranks: int, part: Callable) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_threads(ranks, train, part)


def test_gradients_that_are_zero_everywhere_say_nothing() -> None:
    def rank(comm: pycomm.Communicator) -> None:
        model = torch.nn.Linear(4, 1)
        with DataParallel(model, comm) as parallel:
            (0 * model(torch.ones(2, 4))).sum().backward()
            parallel.synchronize()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_threads(2, rank)


def change(model: torch.nn.Module) -> None:
    with torch.no_grad():
        model.weight[0, 0] += 1e-3


def test_parameters_changed_on_one_rank_are_an_error_where_asked() -> None:
    def between(parallel: DataParallel, model: torch.nn.Module, step: int, comm: pycomm.Communicator) -> None:
        parallel.check_parameters()
        if step == 1 and comm.rank == 1:
            change(model)

    with pytest.raises(TrainerError, match=r"the model's parameters differ from rank 0's on rank 1 \(of 3\)"):
        run_threads(3, train, own, between)


def test_parameters_changed_on_one_rank_are_an_error_at_the_end() -> None:
    def between(parallel: DataParallel, model: torch.nn.Module, step: int, comm: pycomm.Communicator) -> None:
        if step == 2 and comm.rank == 2:
            change(model)

    with pytest.raises(TrainerError, match=r"the model's parameters differ from rank 0's on rank 2 \(of 3\)"):
        run_threads(3, train, own, between)


def test_initial_parameters_of_each_rank_are_replaced_by_those_of_rank_0() -> None:
    def rank(comm: pycomm.Communicator) -> np.ndarray:
        model = torch.nn.Linear(4, 1)
        torch.nn.init.constant_(model.weight, comm.rank)
        with DataParallel(model, comm):
            return model.weight.detach().numpy()

    assert all((weight == 0).all() for weight in run_threads(3, rank))


def test_an_exception_on_one_rank_is_not_hidden_by_the_comparison() -> None:
    def between(parallel: DataParallel, model: torch.nn.Module, step: int, comm: pycomm.Communicator) -> None:
        if comm.rank == 1:
            raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        run_threads(2, train, own, between)
