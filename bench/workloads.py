"""The two fixed models of the training benchmark, with one batch for each rank.

Widths and batches never change, so that ratios of different days can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import BenchError
from trainer.models import MODELS

SGD = (torch.optim.SGD, {"lr": 0.01})
OPTIMIZERS = {"sgd": SGD, "adam": (torch.optim.Adam, {"lr": 0.001, "fused": True})}


@dataclass(frozen=True)
class Workload:
    """A model, this rank's batch for it, and an optimizer's class with its settings."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Tensor
    targets: Tensor
    optimizer_class: tuple[Any, dict[str, Any]] = SGD

    def model(self) -> nn.Module:
        """A new copy, the same on all ranks."""
        torch.manual_seed(0)
        return self.make()

    def optimizer(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        make, settings = self.optimizer_class
        optimizer: torch.optim.Optimizer = make(parameters, **settings)
        return optimizer

    def loss(self, model: nn.Module) -> Tensor:
        """The mean over this rank's batch."""
        logits: Tensor = model(self.inputs)
        return functional.cross_entropy(logits.flatten(0, -2), self.targets.flatten())


def gpt(draw: torch.Generator) -> Workload:
    """10.8 M parameters: 6 layers of width 384, 6 heads, a vocabulary of 256; 2 texts of 64 tokens."""
    tokens = torch.randint(256, (2, 65), generator=draw)
    make = lambda: MODELS.build("gpt", vocabulary=256, context=64, width=384, heads=6, layers=6)  # noqa: E731
    return Workload("gpt", make, tokens[:, :-1], tokens[:, 1:])


def mlp(draw: torch.Generator) -> Workload:
    """20 M parameters: 784-4096-4096-10, 32 samples."""
    inputs, targets = torch.randn(32, 784, generator=draw), torch.randint(10, (32,), generator=draw)
    return Workload("mlp", lambda: MODELS.build("mlp", hidden=[4096, 4096]), inputs, targets)


WORKLOADS = {"gpt": gpt, "mlp": mlp}


def workload(name: str, rank: int, optimizer: str = "sgd") -> Workload:
    """The workload with the rank's own batch."""
    for what, known, got in (("model", WORKLOADS, name), ("optimizer", OPTIMIZERS, optimizer)):
        if got not in known:
            raise BenchError(f"no {what} {got!r}; there is {', '.join(known)}")
    load = WORKLOADS[name](torch.Generator().manual_seed(1 + rank))
    return replace(load, optimizer_class=OPTIMIZERS[optimizer])
