"""One rank of the equivalence test: optimizers, global batches and overlap, each against plain torch.

The oracle, on rank 0, shares nothing with the trainer: it steps on the mean loss of the whole batch.
test_equivalence.py starts this under a launcher, with the folder for a run of `fit`, or calls it on threads.
"""

from __future__ import annotations

import copy
import itertools
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import pycomm
from trainer import DATA, MODELS, DataParallel, Dataset, FitConfig, fit
from trainer.optimizers import make_optimizer
from trainer.sampler import Sampler
from trainer.state import check_equal, parameters_sha256

OPTIMIZERS = ("sgd", "adagrad", "adam")
GLOBAL_BATCHES = (128, 10, 2)  # 2: with three or more ranks, one has no sample
STEPS = 10
BUCKET_BYTES = 16 << 10  # several buckets


def data_and_model() -> tuple[Dataset, nn.Module]:
    torch.manual_seed(11)
    return DATA.build("mnist5k", seed=11), MODELS.build("mlp", hidden=[32, 16])


def run_cases(comm: pycomm.Communicator, data: Dataset, initial: nn.Module) -> int:
    """Raises AssertionError, on rank 0, for the first case that differs; returns how many there were."""
    cases = 0
    for optimizer, global_batch in itertools.product(OPTIMIZERS, GLOBAL_BATCHES):
        if comm.rank == 0:
            expected = one_process(data, copy.deepcopy(initial), optimizer, global_batch)
        for overlap in ("on", "off") if optimizer == "sgd" else ("on",):
            got = data_parallel(comm, data, copy.deepcopy(initial), optimizer, global_batch, overlap)
            if comm.rank == 0:
                compare(expected, got, f"{comm.size} ranks, {optimizer}, {global_batch}, overlap {overlap}")
            cases += 1
    return cases


Trace = tuple[list[torch.Tensor], list[float]]  # gradients of the first step, losses of all


def one_process(data: Dataset, model: nn.Module, optimizer_name: str, global_batch: int) -> Trace:
    optimizer = make_optimizer(optimizer_name, model.parameters(), 0.01)
    sampler = Sampler(len(data.train[0]), global_batch, seed=5)
    gradients: list[torch.Tensor] = []
    losses = []
    for step in range(STEPS):
        inputs, targets = (part[sampler.batch(step).indices] for part in data.train)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()
        gradients = gradients or [parameter.grad.clone() for parameter in model.parameters()]
        optimizer.step()
        losses.append(loss.item())
    return gradients, losses


def data_parallel(
    comm: pycomm.Communicator,
    data: Dataset,
    model: nn.Module,
    optimizer_name: str,
    global_batch: int,
    overlap: str,
) -> Trace:
    optimizer = make_optimizer(optimizer_name, model.parameters(), 0.01)
    sampler = Sampler(len(data.train[0]), global_batch, 5, comm.rank, comm.size)
    gradients: list[torch.Tensor] = []
    losses = []
    with DataParallel(
        model, comm, optimizer, loss_reduction="sum", overlap=overlap, bucket_bytes=BUCKET_BYTES
    ) as parallel:
        for step in range(STEPS):
            batch = sampler.batch(step)
            parallel.global_count = batch.global_count
            optimizer.zero_grad()
            local = torch.zeros(1, dtype=torch.float64)
            if len(batch.indices):
                inputs, targets = (part[batch.indices] for part in data.train)
                loss = functional.cross_entropy(model(inputs), targets, reduction="sum")
                loss.backward()
                local += loss.item()
            optimizer.step()
            gradients = gradients or [parameter.grad.clone() for parameter in model.parameters()]
            losses.append(comm.all_reduce(local).item() / batch.global_count)
    check_equal(parameters_sha256(model), comm, "parameters after training")
    return gradients, losses


def compare(expected: Trace, got: Trace, where: str) -> None:
    for index, (want, have) in enumerate(zip(expected[0], got[0], strict=True)):
        error = (torch.linalg.norm(have - want) / torch.linalg.norm(want)).item()
        assert error <= 1e-6, f"{where}: gradient {index} is off by {error:.2e}"
    for step, (want, have) in enumerate(zip(expected[1], got[1], strict=True)):
        assert abs(have - want) <= 1e-5 * abs(want), f"{where}: loss {step} is {have}, expected {want}"


def main(out: str) -> None:
    torch.set_num_threads(1)
    comm = pycomm.init()
    cases = run_cases(comm, *data_and_model())
    config = FitConfig(
        out=Path(out), steps=STEPS, global_batch=10, optimizer="adagrad", seed=11, threads=1, codec="none"
    )
    fit(config, comm)
    if comm.rank == 0:
        print(f"equivalent: {comm.size} ranks, {cases} cases")


if __name__ == "__main__":
    main(sys.argv[1])
