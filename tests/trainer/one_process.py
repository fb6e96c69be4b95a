"""For tests of DataParallel: a small model, its gradients in one process, and a loop on ranks as threads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import DataParallel

SIZES = [1, 2, 3, 4]
COUNT = 10


def batch(seed: int = 0, inputs: int = 6) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(COUNT, inputs, generator=random), torch.randn(COUNT, 3, generator=random)


def part(tensor: Tensor, comm: Communicator) -> Tensor:
    return tensor.tensor_split(comm.size)[comm.rank]


def summed_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return functional.mse_loss(model(inputs), targets, reduction="sum")


def small_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def gradients_of(model: nn.Module) -> dict[str, Tensor | None]:
    return {
        name: None if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }


def oracle_gradients(model: nn.Module, seed: int = 0) -> dict[str, Tensor | None]:
    model = copy.deepcopy(model)
    (summed_loss(model, *batch(seed)) / COUNT).backward()
    return gradients_of(model)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: Iterable[int]) -> None:
    """What ranks together have to do to the model, in one process."""
    for seed in seeds:
        optimizer.zero_grad()
        (summed_loss(model, *batch(seed)) / COUNT).backward()
        optimizer.step()


def train_on_rank(
    model: nn.Module, optimizer: torch.optim.Optimizer, seeds: Iterable[int], comm: Communicator
) -> None:
    """A rank's part of it, under DataParallel or Zero."""
    for seed in seeds:
        optimizer.zero_grad()
        backward(model, comm, seed)
        optimizer.step()


def assert_equal_gradients(got: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        have = got[name]
        if want is None or have is None:
            assert want is have, name
        else:
            assert torch.linalg.norm(have - want) <= 1e-6 * torch.linalg.norm(want) + 1e-12, name


def on_ranks(size: int, make: Callable[[], nn.Module], body: Callable, **options: object) -> list:
    """`body(parallel, model, optimizer, comm)` on every rank; models differ from `make()` but on rank 0."""
    original = make()

    def rank(comm: Communicator) -> object:
        model = copy.deepcopy(original)
        if comm.rank:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(comm.rank)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        settings = {"loss_reduction": "sum", "global_count": COUNT, "bucket_bytes": 64, **options}
        with DataParallel(model, comm, optimizer, **settings) as parallel:
            return body(parallel, model, optimizer, comm)

    return run_threads(size, rank)


def backward(model: nn.Module, comm: Communicator, seed: int = 0) -> None:
    inputs, targets = (part(tensor, comm) for tensor in batch(seed))
    if len(inputs):
        summed_loss(model, inputs, targets).backward()


class Branches(nn.Module):
    """Three branches, of which a forward takes those that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(6, 3) for _ in range(3))

    def forward(self, x: Tensor, taken: tuple[int, ...]) -> Tensor:
        return sum((self.branches[index](x) for index in taken), torch.zeros(len(x), 3))
