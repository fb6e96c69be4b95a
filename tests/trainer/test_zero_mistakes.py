"""Zero with parameters and optimizers of every kind, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from one_process import (
    COUNT,
    backward,
    batch,
    small_model,
    summed_loss,
    train,
    train_on_rank,
)
from torch import Tensor, nn

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import TrainerError, Zero


class Awkward(nn.Module):
    """Tied, frozen, strided, empty and zero-dimensional parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.strided = nn.Parameter(torch.randn(3, 6).t())
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.nothing = nn.Parameter(torch.empty(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.frozen(torch.tanh(self.second(torch.tanh(self.first(x))))))
        return self.scale * (x @ self.strided) + self.nothing.sum()


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_awkward_parameters_step_as_in_one_process(stage: int, size: int) -> None:
    def rank(comm: Communicator) -> dict:
        model = copy.deepcopy(original)
        stepping = torch.optim.Adam(model.parameters(), 0.01)
        with Zero(model, comm, stepping, stage=stage, loss_reduction="sum", global_count=COUNT):
            train_on_rank(model, stepping, range(3), comm)
        return model.state_dict()

    original = Awkward()
    model = copy.deepcopy(original)
    stepping = torch.optim.Adam(model.parameters(), 0.01)
    train(model, stepping, range(3))
    for got in run_threads(size, rank):
        torch.testing.assert_close(got, model.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_have_buckets_of_their_own(dtype: torch.dtype) -> None:
    """Small integers, so that every dtype holds the sums exactly."""

    def rank(comm: Communicator) -> list[Tensor]:
        model = nn.ModuleList([nn.Linear(20, 9), nn.Linear(20, 9, dtype=dtype)])
        for parameter in model.parameters():
            nn.init.ones_(parameter)
        stepping = torch.optim.SGD(model.parameters(), 1.0)
        with Zero(model, comm, stepping, loss_reduction="sum", global_count=2):
            sum((parameter * (comm.rank + 1)).sum().double() for parameter in model.parameters()).backward()
            stepping.step()
        return list(model.parameters())

    for parameters in run_threads(3, rank):
        assert [parameter.dtype for parameter in parameters] == [torch.float32] * 2 + [dtype] * 2
        assert all(bool((parameter == -2).all()) for parameter in parameters)


def test_state_that_the_optimizer_has_is_kept() -> None:
    """Three steps alone, then three on two ranks, are six."""

    def rank(comm: Communicator) -> dict:
        model, stepping = copy.deepcopy((first, optimizer))
        with Zero(model, comm, stepping, loss_reduction="sum", global_count=COUNT):
            train_on_rank(model, stepping, range(3, 6), comm)
        return model.state_dict()

    first = small_model()
    optimizer = torch.optim.Adam(first.parameters(), 0.05)
    train(first, optimizer, range(3))
    whole, its = copy.deepcopy((first, optimizer))
    train(whole, its, range(3, 6))
    for got in run_threads(2, rank):
        torch.testing.assert_close(got, whole.state_dict(), rtol=1e-4, atol=1e-6)


def test_memory_of_the_optimizer_is_divided() -> None:
    def rank(comm: Communicator) -> int:
        model = nn.Linear(64, 64, bias=False)
        stepping = torch.optim.Adam(model.parameters())
        with Zero(model, comm, stepping):
            model(torch.full((1, 64), comm.rank + 1.0)).sum().backward()
            stepping.step()
            return sum(state["exp_avg"].numel() for state in stepping.state.values())

    assert run_threads(4, rank) == [1024] * 4
    assert run_threads(3, rank) == [1408, 1408, 1280]  # cut at multiples of 64, the last one padded


class Decaying(torch.optim.SGD):
    """Its step goes on after super().step()."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(0.5)


def test_an_optimizer_whose_step_goes_on_after_its_bases_is_waited_for() -> None:
    torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)  # its step runs hooks too from here on

    def rank(comm: Communicator) -> dict:
        model = copy.deepcopy(original)
        stepping = Decaying(model.parameters(), 0.1)
        with Zero(model, comm, stepping, loss_reduction="sum", global_count=COUNT):
            backward(model, comm)
            stepping.step()
        return model.state_dict()

    original = small_model()
    model = copy.deepcopy(original)
    (summed_loss(model, *batch()) / COUNT).backward()
    Decaying(model.parameters(), 0.1).step()
    for got in run_threads(3, rank):
        torch.testing.assert_close(got, model.state_dict())


def test_close_gives_the_optimizer_its_parameters_back() -> None:
    model = small_model()
    stepping = torch.optim.Adam(model.parameters(), 0.1)

    def rank(comm: Communicator) -> None:
        with Zero(model, comm, stepping):
            assert stepping.param_groups[0]["params"][0].ndim == 1
            model(batch()[0]).sum().backward()
            stepping.step()

    run_threads(1, rank)
    assert [id(p) for p in stepping.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    assert "zero_grad" not in vars(stepping) and not stepping.state
    model(batch()[0]).sum().backward()
    stepping.step()
    stepping.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_autograd_notices_that_a_step_changed_what_a_graph_saved() -> None:
    model = small_model()
    stepping = torch.optim.SGD(model.parameters(), 0.1)

    def rank(comm: Communicator) -> None:
        with Zero(model, comm, stepping):
            loss = model(batch()[0]).square().sum()
            loss.backward(retain_graph=True)
            stepping.step()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()

    run_threads(1, rank)


def drop(parallel: Zero, model: nn.Module, stepping: torch.optim.Optimizer) -> None:
    stepping.zero_grad()


def closure(parallel: Zero, model: nn.Module, stepping: torch.optim.Optimizer) -> None:
    stepping.step(lambda: 0.0)


def again(parallel: Zero, model: nn.Module, stepping: torch.optim.Optimizer) -> None:
    summed_loss(model, *batch()).backward()


def replace(parallel: Zero, model: nn.Module, stepping: torch.optim.Optimizer) -> None:
    model[0].weight.grad = torch.ones_like(model[0].weight)
    stepping.step()


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (drop, r"zero_grad\(\) between backward and step\(\)"),
        (closure, r"optimizer.step\(closure\)"),
        (again, r"a second gradient for 2.bias .* no_sync\(\)"),
        (replace, "the gradient of 0.weight changed between backward and its reduction"),
    ],
)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_mistakes_are_errors_and_not_wrong_gradients(mistake: Callable, message: str, stage: int) -> None:
    def rank(comm: Communicator) -> None:
        model = small_model()
        stepping = torch.optim.SGD(model.parameters(), 0.1)
        parallel = Zero(model, comm, stepping, stage=stage, loss_reduction="sum", global_count=COUNT)
        backward(model, comm)
        with pytest.raises(TrainerError, match=message):
            mistake(parallel, model, stepping)
        for work in parallel._buckets._works:  # a rank must not leave while others reduce
            work.wait()

    run_threads(2, rank)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": 4}, "stage: expected 0, 1, 2 or 3, got 4"),
        ({"stage": 2, "pool": 0}, "pool: expected 1 bucket or more, got 0"),
        ({"stage": 2, "pool": 1.5}, "pool: expected 1 bucket or more, got 1.5"),
        ({"stage": 2, "pool": True}, "pool: expected 1 bucket or more, got True"),
        ({"share_params": "yess"}, "share_params: expected true or false, got 'yess'"),
        ({"share_params": 1}, "share_params: expected true or false, got 1"),
        ({"stage": 2, "overlap": "off"}, "expected overlap auto or on, got off"),
        ({"loss_reduction": "max"}, "loss_reduction: expected mean or sum"),
    ],
)
def test_wrong_arguments_are_refused(options: dict, message: str) -> None:
    model = small_model()
    with pytest.raises(TrainerError, match=message):
        run_threads(1, lambda comm: Zero(model, comm, torch.optim.SGD(model.parameters(), 0.1), **options))


def test_a_parameter_that_nobody_would_update_is_refused_by_name() -> None:
    model = small_model()
    stepping = torch.optim.SGD(model[0].parameters(), 0.1)
    with pytest.raises(TrainerError, match=r"2.bias requires a gradient and is not in the optimizer"):
        run_threads(1, lambda comm: Zero(model, comm, stepping))
