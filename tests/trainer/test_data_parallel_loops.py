"""DataParallel under whatever loops do with gradients: clear, replace, accumulate, clip."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from one_process import (
    COUNT,
    Branches,
    assert_equal_gradients,
    backward,
    batch,
    gradients_of,
    on_ranks,
    oracle_gradients,
    small_model,
    summed_loss,
    train,
)
from torch import nn

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import DataParallel


class ReplacingSGD(torch.optim.SGD):
    """An optimizer that leaves gradients of its own making."""

    def step(self, closure: None = None) -> None:
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter.grad)


def replace_by_zeros(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


CLEARINGS: dict[str, Callable[[nn.Module, torch.optim.Optimizer], None]] = {
    "drop": lambda model, optimizer: optimizer.zero_grad(set_to_none=True),
    "zero in place": lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
    "model.zero_grad": lambda model, optimizer: model.zero_grad(),
    "replace": lambda model, optimizer: replace_by_zeros(model),
}


@pytest.mark.parametrize("clear", CLEARINGS.values(), ids=CLEARINGS)
@pytest.mark.parametrize("overlap", ["on", "off"])
def test_no_way_of_clearing_detaches_a_gradient_from_its_bucket(clear: Callable, overlap: str) -> None:
    def body(
        parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer, comm: Communicator
    ) -> list:
        seen = []
        for seed in range(3):
            clear(model, optimizer)
            backward(model, comm, seed)
            optimizer.step()
            seen.append((gradients_of(model), copy.deepcopy(model)))
        return seen

    expected = [oracle_gradients(small_model(), 0)]
    for seen in on_ranks(2, small_model, body, overlap=overlap):
        assert_equal_gradients(seen[0][0], expected[0])
        for seed in (1, 2):
            assert_equal_gradients(seen[seed][0], oracle_gradients(seen[seed - 1][1], seed))


def test_an_optimizer_that_replaces_gradients_is_followed() -> None:
    def rank(comm: Communicator) -> dict:
        model = copy.deepcopy(original)
        optimizer = ReplacingSGD(model.parameters(), lr=0.1)
        with DataParallel(model, comm, optimizer, loss_reduction="sum", global_count=COUNT):
            for seed in range(3):
                backward(model, comm, seed)
                optimizer.step()
        return model.state_dict()

    original = small_model()
    model = copy.deepcopy(original)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, range(3))
    for state in run_threads(2, rank):
        torch.testing.assert_close(state, model.state_dict())


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("overlap", ["on", "off"])
def test_no_sync_accumulates_and_the_next_backward_reduces(
    size: int, set_to_none: bool, overlap: str
) -> None:
    def body(
        parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer, comm: Communicator
    ) -> dict:
        for _ in range(2):
            optimizer.zero_grad(set_to_none=set_to_none)
            with parallel.no_sync():
                backward(model, comm, 0)
                backward(model, comm, 1)
            backward(model, comm, 2)
            parallel.synchronize()
        return gradients_of(model)

    model = small_model()
    for seed in range(3):
        (summed_loss(model, *batch(seed)) / (3 * COUNT)).backward()
    for got in on_ranks(size, small_model, body, global_count=3 * COUNT, overlap=overlap):
        assert_equal_gradients(got, gradients_of(model))


def test_a_gradient_accumulated_only_within_no_sync_is_reduced() -> None:
    torch.manual_seed(2)
    original = Branches()

    def rank(comm: Communicator) -> dict:
        model = copy.deepcopy(original)
        with DataParallel(model, comm, loss_reduction="sum", global_count=3) as parallel:
            with parallel.no_sync():
                (model(batch()[0], (0, 1)).sum() * (comm.rank + 1)).backward()
            (model(batch()[0], (0,)).sum() * (comm.rank + 1)).backward()
            parallel.synchronize()
            return gradients_of(model)

    model = copy.deepcopy(original)
    (model(batch()[0], (0, 1)) + model(batch()[0], (0,))).sum().backward()
    for got in run_threads(2, rank):
        assert_equal_gradients(got, gradients_of(model))


def test_clipping_after_synchronize_sees_the_whole_gradient() -> None:
    def body(
        parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer, comm: Communicator
    ) -> tuple:
        backward(model, comm)
        parallel.synchronize()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        return norm, model.state_dict()

    model = small_model()
    (summed_loss(model, *batch()) / COUNT).backward()
    expected = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for norm, state in on_ranks(3, small_model, body, overlap="on"):
        torch.testing.assert_close(norm, expected)
        torch.testing.assert_close(state, model.state_dict())


def test_a_step_may_be_left_out_after_synchronize() -> None:
    def body(
        parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer, comm: Communicator
    ) -> dict:
        backward(model, comm, 0)
        parallel.synchronize()
        optimizer.zero_grad()
        backward(model, comm, 1)
        optimizer.step()
        return gradients_of(model)

    for got in on_ranks(2, small_model, body):
        assert_equal_gradients(got, oracle_gradients(small_model(), 1))
