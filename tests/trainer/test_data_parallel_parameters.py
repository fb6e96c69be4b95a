"""DataParallel with parameters of every kind: unused, tied, frozen, of odd shapes and dtypes, in groups."""

from __future__ import annotations

import copy

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
    part,
    small_model,
    train,
    train_on_rank,
)
from torch import Tensor, nn
from torch.nn import functional

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import DataParallel
from trainer.gradients import slots_of


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_a_parameter_that_no_rank_used_keeps_no_gradient(overlap: str) -> None:
    """Rank r of two uses branch r of three; weight decay must not move the last one."""
    torch.manual_seed(2)
    original = Branches()

    def rank(comm: Communicator) -> tuple[dict, dict]:
        model = copy.deepcopy(original)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
        parallel = DataParallel(
            model, comm, optimizer, loss_reduction="sum", global_count=COUNT, overlap=overlap, bucket_bytes=1
        )
        with parallel:
            for seed in range(2):
                optimizer.zero_grad()
                inputs, targets = (part(tensor, comm) for tensor in batch(seed))
                functional.mse_loss(model(inputs, (comm.rank,)), targets, reduction="sum").backward()
                optimizer.step()
            return gradients_of(model), copy.deepcopy(model.state_dict())

    model = copy.deepcopy(original)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    for seed in range(2):
        optimizer.zero_grad()
        for index, (inputs, targets) in enumerate(
            zip(*(tensor.tensor_split(2) for tensor in batch(seed)), strict=True)
        ):
            loss = functional.mse_loss(model(inputs, (index,)), targets, reduction="sum")
            (loss / COUNT).backward()
        optimizer.step()
    for gradients, state in run_threads(2, rank):
        assert gradients["branches.2.weight"] is None
        assert_equal_gradients(gradients, gradients_of(model))
        assert torch.equal(state["branches.2.weight"], original.branches[2].weight)
        torch.testing.assert_close(state, model.state_dict())


def test_a_parameter_used_later_joins_later() -> None:
    torch.manual_seed(2)
    original = Branches()

    def rank(comm: Communicator) -> list[bool]:
        model = copy.deepcopy(original)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        has_gradient = []
        with DataParallel(model, comm, optimizer, loss_reduction="sum", global_count=COUNT):
            for taken in ((0,), (0, 2), (0,)):
                optimizer.zero_grad()
                model(part(batch()[0], comm), taken).sum().backward()
                optimizer.step()
                has_gradient.append(model.branches[2].weight.grad is not None)
        return has_gradient

    assert run_threads(2, rank) == [[False, True, False]] * 2


class Tied(nn.Module):
    """One parameter used in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(6, 6).requires_grad_(False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.base(x)))


class Transposed(nn.Module):
    """A parameter whose memory is not contiguous, so neither is its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 6).t())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Scalar(nn.Module):
    """Parameters of zero dimensions and of zero elements."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.nothing = nn.Parameter(torch.empty(0, 3))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.head(x) + self.nothing.sum()


@pytest.mark.parametrize("kind", [Tied, Frozen, Transposed, Scalar])
@pytest.mark.parametrize("size", [1, 3])
def test_awkward_parameters_get_the_gradients_of_one_process(kind: type[nn.Module], size: int) -> None:
    def make() -> nn.Module:
        torch.manual_seed(3)
        return kind()

    def body(
        parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer, comm: Communicator
    ) -> dict:
        for _ in range(2):
            optimizer.zero_grad()
            backward(model, comm)
            parallel.synchronize()
        return gradients_of(model)

    for got in on_ranks(size, make, body):
        assert_equal_gradients(got, oracle_gradients(make()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_reduced_in_buckets_of_their_own(dtype: torch.dtype) -> None:
    """Small integers, so that every dtype holds the sums exactly."""

    def make() -> nn.Module:
        return nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2, dtype=dtype)])

    def body(
        parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer, comm: Communicator
    ) -> list:
        for parameter in model.parameters():
            (parameter * (comm.rank + 1)).sum().backward()
        parallel.synchronize()
        return [parameter.grad.clone() for parameter in model.parameters()]

    for gradients in on_ranks(3, make, body, global_count=2):
        assert [gradient.dtype for gradient in gradients] == [torch.float32] * 2 + [dtype] * 2
        assert all(bool((gradient == 3).all()) for gradient in gradients)


def test_slots_are_in_reverse_order_with_the_groups_of_the_optimizer() -> None:
    model = small_model()
    biases = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.SGD([{"params": biases}, {"params": [model[2].weight]}], lr=0.1)
    model[2].bias.requires_grad_(False)
    slots = [(slot.name, slot.group) for slot in slots_of(model, optimizer)]
    assert slots == [("2.weight", 1), ("0.bias", 0), ("0.weight", 2)]
    assert [slot.group for slot in slots_of(model, None)] == [0, 0, 0]


@pytest.mark.parametrize("size", [1, 3])
def test_optimizer_groups_keep_their_settings(size: int) -> None:
    def groups(model: nn.Module) -> list[dict]:
        weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        biases = [parameter for parameter in model.parameters() if parameter.ndim == 1]
        return [{"params": biases, "lr": 0.5}, {"params": weights, "weight_decay": 0.1}]

    def rank(comm: Communicator) -> dict:
        model = small_model_copy()
        optimizer = torch.optim.Adam(groups(model), lr=0.01)
        with DataParallel(model, comm, optimizer, loss_reduction="sum", global_count=COUNT):
            train_on_rank(model, optimizer, range(3), comm)
        return model.state_dict()

    original = small_model()

    def small_model_copy() -> nn.Module:
        return copy.deepcopy(original)

    model = small_model_copy()
    optimizer = torch.optim.Adam(groups(model), lr=0.01)
    train(model, optimizer, range(3))
    for state in run_threads(size, rank):
        torch.testing.assert_close(state, model.state_dict(), rtol=1e-4, atol=1e-5)


def test_buffers_follow_rank_0() -> None:
    def make() -> nn.Module:
        torch.manual_seed(4)
        return nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))

    def body(
        parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer, comm: Communicator
    ) -> Tensor:
        backward(model, comm)
        optimizer.step()
        return model[1].running_mean.clone()

    means = on_ranks(3, make, body)
    reference = make()
    reference(batch()[0].tensor_split(3)[0])
    assert all(torch.equal(mean, means[0]) for mean in means)
    torch.testing.assert_close(means[0], reference[1].running_mean)
    own = on_ranks(3, make, body, broadcast_buffers=False)
    assert not torch.equal(own[0], own[1])
