"""Slices: what ranks hold together is everything once, and comes back to the bit, however it is cut."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from trainer.checkpoint.slices import (
    Slice,
    load_replicated,
    model_tensors,
    optimizer_tensors,
    replicated_slices,
)
from trainer.errors import TrainerError


class Tied(nn.Module):
    """Shared, frozen, empty, strided and unused parameters, and buffers of other dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(7, 5)
        self.other = nn.Linear(7, 5)
        self.other.weight = self.one.weight
        self.strided = nn.Parameter(torch.randn(3, 4).T)
        self.frozen = nn.Parameter(torch.randn(2), requires_grad=False)
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.unused = nn.Parameter(torch.randn(2))
        self.norm = nn.BatchNorm1d(5)
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("scratch", torch.randn(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.one(x) + self.other(x)).sum() + self.strided.square().sum()


OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, 0.1),
    "momentum": lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, 0.1),
    "adam": lambda ps: torch.optim.Adam(ps, 0.1, amsgrad=True),
}


def trained(optimizer: str, steps: int = 3, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = Tied()
    stepping = OPTIMIZERS[optimizer](model.parameters())
    for _ in range(steps):
        stepping.zero_grad()
        model(torch.randn(4, 7)).backward()
        stepping.step()
    return model, stepping


class InMemory:
    """A reader of slices that were just made."""

    def __init__(self, slices: Iterable[Slice]) -> None:
        self._whole: dict[str, Tensor] = {}
        self._times: dict[str, Tensor] = {}
        for part in slices:
            whole = self._whole.setdefault(part.name, torch.empty(part.shape, dtype=part.data.dtype))
            times = self._times.setdefault(part.name, torch.zeros(part.shape).flatten())
            whole.view(-1)[part.offset : part.offset + len(part.data)] = part.data
            times[part.offset : part.offset + len(part.data)] += 1
        for name, times in self._times.items():
            assert bool((times == 1).all()), f"{name} is not there exactly once"

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._whole[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        return self._whole[name].dtype

    def states(self, parameter: str) -> list[str]:
        prefix = f"optimizer.{parameter}."
        return [name.removeprefix(prefix) for name in self._whole if name.startswith(prefix)]

    def read(self, name: str, out: Tensor, offset: int = 0) -> None:
        out.copy_(self._whole[name].view(-1)[offset : offset + len(out)])


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("size", [1, 2, 3, 5, 400])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_parts_of_all_ranks_are_everything_once_and_come_back(optimizer: str, size: int) -> None:
    model, stepping = trained(optimizer)
    parts = [list(replicated_slices(model, stepping, rank, size)) for rank in range(size)]
    counts = [sum(len(part.data) for part in mine) for mine in parts]
    assert max(counts) - min(counts) <= 1
    other, its = trained(optimizer, steps=1, seed=1)
    load_replicated(other, its, InMemory(part for mine in parts for part in mine))
    assert_same(model_tensors(model), model_tensors(other))
    assert_same(optimizer_tensors(model, stepping), optimizer_tensors(other, its))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on_as_if_it_had_not_been_interrupted(optimizer: str) -> None:
    model, stepping = trained(optimizer)
    other, its = trained(optimizer, steps=0, seed=1)
    load_replicated(other, its, InMemory(replicated_slices(model, stepping, 0, 1)))
    for one, steps in ((model, stepping), (other, its)):
        torch.manual_seed(7)
        for _ in range(3):
            steps.zero_grad()
            one(torch.randn(4, 7)).backward()
            steps.step()
    assert_same(model_tensors(model), model_tensors(other))
    assert_same(optimizer_tensors(model, stepping), optimizer_tensors(other, its))


def test_a_shared_parameter_is_there_once_and_what_is_not_persistent_is_not() -> None:
    model, stepping = trained("adam")
    names = {part.name for part in replicated_slices(model, stepping, 0, 1)}
    assert {name for name in names if name.startswith("model.")} == {
        "model.one.weight", "model.one.bias", "model.other.bias", "model.strided", "model.frozen",
        "model.empty", "model.unused", "model.norm.weight", "model.norm.bias", "model.norm.running_mean",
        "model.norm.running_var", "model.norm.num_batches_tracked", "model.mask",
    }  # fmt: skip
    assert "optimizer.one.weight.exp_avg" in names
    assert not any(name.startswith(("optimizer.unused", "optimizer.frozen")) for name in names)


def test_state_that_is_no_tensor_is_refused_by_name() -> None:
    model, stepping = trained("adam")
    stepping.state[model.strided]["window"] = [1, 2]
    with pytest.raises(TrainerError, match="Adam keeps window of strided as list"):
        list(replicated_slices(model, stepping, 0, 1))
