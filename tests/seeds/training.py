"""A training as plain torch does it in one process, and as DataParallel does it on N ranks.

Both visit the samples in the sampler's order and leave the same trace. The one process shares nothing else
with the trainer: it steps on the mean loss of the whole batch.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import DataParallel
from trainer.sampler import Sampler


@dataclass(frozen=True)
class Training:
    inputs: Tensor
    targets: Tensor
    model: nn.Module  # as it starts; never changed
    loss: Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> sum over the samples
    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer]
    global_batch: int
    steps: int

    def sampler(self, rank: int = 0, size: int = 1) -> Sampler:
        return Sampler(len(self.inputs), self.global_batch, 0, rank, size)


@dataclass
class Trace:
    """By step: the mean loss before it, all parameters after it, and the samples that this rank took."""

    losses: list[float] = field(default_factory=list)
    parameters: list[Tensor] = field(default_factory=list)
    samples: list[list[int]] = field(default_factory=list)

    def add(self, loss: float, model: nn.Module, samples: Tensor) -> None:
        self.losses.append(loss)
        self.parameters.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
        self.samples.append(samples.tolist())


def in_one_process(training: Training) -> Trace:
    model, trace, sampler = copy.deepcopy(training.model), Trace(), training.sampler()
    optimizer = training.optimizer(model.parameters())
    for step in range(training.steps):
        samples = sampler.batch(step).indices
        optimizer.zero_grad()
        loss = training.loss(model(training.inputs[samples]), training.targets[samples]) / len(samples)
        loss.backward()
        optimizer.step()
        trace.add(loss.item(), model, samples)
    return trace


def on_ranks(training: Training, ranks: int) -> list[Trace]:
    """The trace of every rank."""
    return run_threads(ranks, _one_rank, training)


def _one_rank(comm: Communicator, training: Training) -> Trace:
    model, trace, sampler = copy.deepcopy(training.model), Trace(), training.sampler(comm.rank, comm.size)
    optimizer = training.optimizer(model.parameters())
    with DataParallel(model, comm, optimizer, loss_reduction="sum") as parallel:
        for step in range(training.steps):
            batch = sampler.batch(step)
            parallel.global_count = batch.global_count
            optimizer.zero_grad()
            mine = torch.zeros(1, dtype=torch.float64)
            if len(batch.indices):
                loss = training.loss(model(training.inputs[batch.indices]), training.targets[batch.indices])
                loss.backward()
                mine += loss.item()
            optimizer.step()
            trace.add(comm.all_reduce(mine).item() / batch.global_count, model, batch.indices)
    return trace


def rows_of(run: Path) -> list[dict[str, Any]]:
    """What `fit` wrote in that folder, by step."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def difference(found: Trace, expected: Trace) -> float:
    """The worst step's difference between the parameters, relative to their norm."""
    pairs = zip(found.parameters, expected.parameters, strict=True)
    return max((torch.linalg.norm(have - want) / torch.linalg.norm(want)).item() for have, want in pairs)


def loss_difference(found: Trace, expected: Trace) -> float:
    """The worst step's difference between the losses, relative to the loss."""
    return max(abs(have - want) / want for have, want in zip(found.losses, expected.losses, strict=True))
