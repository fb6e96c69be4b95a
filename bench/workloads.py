"""The two fixed models of the training benchmark, with one batch for each rank.

Widths and batches never change, so that ratios of different days can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.errors import BenchError
from trainer.models import MODELS


@dataclass(frozen=True)
class Workload:
    """A model, and this rank's batch for it."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Tensor
    targets: Tensor

    def model(self) -> nn.Module:
        """A new copy, the same on all ranks."""
        torch.manual_seed(0)
        return self.make()

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


def workload(name: str, rank: int) -> Workload:
    """The workload with the rank's own batch."""
    if name not in WORKLOADS:
        raise BenchError(f"no model {name!r}; there is {', '.join(WORKLOADS)}")
    return WORKLOADS[name](torch.Generator().manual_seed(1 + rank))
