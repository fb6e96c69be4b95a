"""The training loop.

Every rank back-propagates the *sum* of its samples' losses; the strategy divides by the samples of all
ranks. A step is then the same step whatever the number of ranks, whether or not it divides the batch, and
also where a rank has no sample at all.
"""

from __future__ import annotations

import math
import platform
import time
from typing import Any

import numpy
import torch
from torch import Tensor, nn

import pycomm
from pycomm import Communicator, trace_span
from trainer.config import FitConfig
from trainer.data import DATA, Dataset
from trainer.errors import DivergedError, TrainerError
from trainer.evaluate import evaluate
from trainer.metrics import Metrics
from trainer.models import MODELS
from trainer.optimizers import make_optimizer
from trainer.sampler import Batch, Sampler
from trainer.state import check_equal, parameters_sha256
from trainer.strategy import STRATEGIES, Wire


def fit(config: FitConfig, comm: Communicator) -> dict[str, Any]:
    """Trains, evaluates, writes config.out; returns the summary. Collective."""
    config.check()
    torch.set_num_threads(config.threads or max(1, comm.cores))
    dataset = DATA.build(config.data, seed=config.seed, **config.data_options)
    model = _model(config, dataset)
    optimizer = make_optimizer(config.optimizer, model.parameters(), config.lr, **config.optimizer_options)
    sampler = Sampler(
        len(dataset.train[0]), config.global_batch_for(comm.size), config.seed, comm.rank, comm.size
    )
    steps = config.steps_for(sampler.steps_per_epoch)
    wire = Wire(config.codec, config.overlap, int(config.bucket_mb * 2**20))
    if comm.rank == 0:
        print(_headline(config, comm, steps, sampler), flush=True)
    strategy = STRATEGIES.build(config.strategy, model, comm, optimizer, wire, **config.strategy_options)
    with Metrics(config.out, comm.rank, steps) as metrics:
        for step in range(1, steps + 1):
            start = time.monotonic()
            with trace_span("data", step=step):
                batch = sampler.batch(step - 1)
            optimizer.zero_grad(set_to_none=True)
            strategy.before_forward(batch)
            loss = _forward_backward(model, dataset, batch, step, comm)
            with trace_span("step", step=step):
                strategy.step()
            row = {
                "step": step,
                "epoch": batch.epoch,
                "loss": loss.result(),
                "samples": batch.global_count,
                "lr": optimizer.param_groups[0]["lr"],
                "step_ms": 1000 * (time.monotonic() - start),
                "exposed_comm_ms": 1000 * strategy.exposed_s,
            }
            last = step == steps
            if last or (config.eval_every and step % config.eval_every == 0):
                strategy.close() if last else strategy.before_forward(None)
                with trace_span("evaluate", step=step):
                    row["eval"] = evaluate(model, dataset.task, *dataset.test, comm)
            metrics.add(row)
        summary = _summary(config, model, metrics, comm)
        metrics.write_summary(summary)
    return summary


class StepLoss:
    """The loss of one step: this rank's sum, checked at once; the mean over all ranks' samples later.

    The reduction starts between forward and backward, at the same place on every rank whatever the strategy
    launches afterwards, and has arrived when the step ends.
    """

    def __init__(self, local_sum: float, batch: Batch, step: int, comm: Communicator) -> None:
        self._where = f"at step {step} on rank {comm.rank}"
        self._global_count = batch.global_count
        self._check(local_sum)
        self._sum = torch.tensor([local_sum], dtype=torch.float64)
        self._work = comm.all_reduce_async(self._sum)

    def result(self) -> float:
        self._work.wait()
        self._check(self._sum.item())
        return self._sum.item() / self._global_count

    def _check(self, value: float) -> None:
        if not math.isfinite(value):
            raise DivergedError(f"the loss is {value} {self._where}; a smaller lr may help")


def _forward_backward(
    model: nn.Module, dataset: Dataset, batch: Batch, step: int, comm: Communicator
) -> StepLoss:
    """Leaves the gradients of this rank's summed loss in the parameters; none if the rank has no sample."""
    if not len(batch.indices):
        return StepLoss(0.0, batch, step, comm)
    inputs, targets = dataset.train
    with trace_span("forward", step=step):
        summed: Tensor = dataset.task.loss(model(inputs[batch.indices]), targets[batch.indices])
    loss = StepLoss(summed.item(), batch, step, comm)
    with trace_span("backward", step=step):
        summed.backward()
    return loss


def _model(config: FitConfig, dataset: Dataset) -> nn.Module:
    decided = dataset.shape.keys() & config.model_options.keys()
    if decided:
        raise TrainerError(f"model_options: {', '.join(sorted(decided))} is decided by data {config.data!r}")
    torch.manual_seed(config.seed)
    return MODELS.build(config.model, **dataset.shape, **config.model_options)


def _headline(config: FitConfig, comm: Communicator, steps: int, sampler: Sampler) -> str:
    per_rank = numpy.array_split(numpy.empty(sampler.global_batch), comm.size)
    shares = sorted({len(part) for part in per_rank})
    return (
        f"{config.model} on {config.data}, {config.strategy}, "
        f"{comm.size} rank{'s' * (comm.size > 1)} over {comm.transport}, codec {config.codec}, "
        f"{torch.get_num_threads()} threads per rank; global batch {sampler.global_batch} "
        f"({' or '.join(map(str, shares))} per rank), {steps} steps of {sampler.steps_per_epoch} per epoch"
    )


def _summary(config: FitConfig, model: nn.Module, metrics: Metrics, comm: Communicator) -> dict[str, Any]:
    param_sha256 = parameters_sha256(model)
    check_equal(param_sha256, comm, "the trained parameters")
    return {
        "strategy": config.strategy,
        "world_size": comm.size,
        "steps": len(metrics.rows),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "loss_first": metrics.rows[0]["loss"],
        "loss_last": metrics.rows[-1]["loss"],
        "eval": metrics.rows[-1]["eval"],
        **metrics.timing(),
        "param_sha256": param_sha256,
        "transport": comm.transport,
        "codec": config.codec,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    info = pycomm.info()
    return {
        "pycomm": info["pycomm"],
        "mpi": info["mpi"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }
