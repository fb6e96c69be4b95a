"""The training loop.

Every rank back-propagates the *sum* of its samples' losses; the strategy divides by what the task counts,
samples or tokens, in the batches of all ranks. A step is then the same step whatever the number of ranks,
whether or not it divides the batch, and also where a rank has no sample at all.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import torch
from torch import Tensor, nn

from pycomm import Communicator, trace_span
from trainer.config import CONFIG_FILE, FitConfig
from trainer.data import DATA, Dataset
from trainer.divergence import LastGood, StepLoss, check_gradients
from trainer.errors import TrainerError
from trainer.evaluations import Evaluations
from trainer.files import on_rank_0, writing
from trainer.metrics import Metrics
from trainer.models import MODELS
from trainer.optimizers import make_optimizer
from trainer.sampler import Batch, Sampler
from trainer.schedules import make_schedule
from trainer.state import check_equal, data_sha256
from trainer.stopping import Stopping
from trainer.strategy import STRATEGIES, Strategy, Wire
from trainer.summary import headline, summary
from trainer.weights import FINAL, LAST_GOOD, save_weights

_SEEDED = threading.Lock()  # ranks that are threads share torch's generator


def fit(config: FitConfig, comm: Communicator) -> dict[str, Any]:
    """Trains, evaluates, writes config.out; returns the summary. Collective."""
    config.check()
    torch.set_num_threads(config.threads or max(1, comm.cores))
    dataset = DATA.build(config.data, seed=config.seed, **config.data_options)
    check_equal(data_sha256(dataset), comm, f"data {config.data!r}")
    model = build_model(config, dataset)
    optimizer = make_optimizer(config.optimizer, model.parameters(), config.lr, **config.optimizer_options)
    sampler = _sampler(config, dataset, comm)
    steps = config.steps_for(sampler.steps_per_epoch)
    schedule = make_schedule(
        config.schedule, optimizer, steps, config.warmup_steps, **config.schedule_options
    )
    if comm.rank == 0:
        print(headline(config, comm, sampler, dataset), flush=True)
    on_rank_0(comm, lambda: _start_folder(config))
    wire = Wire(config.codec, config.overlap, int(config.bucket_mb * 2**20), config.grad_reduction)
    strategy = STRATEGIES.build(config.strategy, model, comm, optimizer, wire, **config.strategy_options)
    every = config.evaluation_steps_for(sampler.steps_per_epoch)
    stopping = Stopping(config.patience, config.tolerance)
    evaluations = Evaluations(model, dataset, strategy, comm, every, steps, stopping)
    with Metrics(config.out, comm.rank, steps) as metrics, LastGood(config.out, model, comm) as last_good:
        for step in range(1, steps + 1):
            start = time.monotonic()
            with trace_span("data", step=step):
                batch = sampler.batch(step - 1)
            last_good.before(step)
            optimizer.zero_grad(set_to_none=True)
            strategy.before_forward(batch)
            loss = _forward_backward(model, dataset, strategy, batch, step, comm)
            with trace_span("step", step=step):
                strategy.synchronize()
                mean_loss = loss.result()
                check_gradients(model, step, comm)
                strategy.step()
            row = {
                "step": step,
                "epoch": batch.epoch,
                "loss": mean_loss,
                "samples": batch.global_samples,
                "lr": optimizer.param_groups[0]["lr"],
                "step_ms": 1000 * (time.monotonic() - start),
                "exposed_comm_ms": 1000 * strategy.exposed_s,
            }
            schedule.step()
            metrics.add(row | evaluations.after(step))
            if evaluations.ended:
                break
        on_rank_0(comm, lambda: save_weights(config.out / FINAL, model, step))
        result = summary(config, model, metrics, evaluations, comm)
        on_rank_0(comm, lambda: metrics.write_summary(result))
    return result


def _forward_backward(
    model: nn.Module, dataset: Dataset, strategy: Strategy, batch: Batch, step: int, comm: Communicator
) -> StepLoss:
    """Leaves the gradients of this rank's loss in the parameters; none if the rank has no sample."""
    if not len(batch.indices):
        return StepLoss(0.0, batch, step, comm)
    inputs, targets = dataset.train
    with trace_span("forward", step=step):
        summed: Tensor = dataset.task.loss(model(inputs[batch.indices]), targets[batch.indices])
    loss = StepLoss(summed.item(), batch, step, comm)
    with trace_span("backward", step=step):
        strategy.loss(summed, batch).backward()
    return loss


def build_model(config: FitConfig, dataset: Dataset) -> nn.Module:
    """The model, with initial parameters drawn from the seed; the data set decides its outer sizes."""
    decided = dataset.shape.keys() & config.model_options.keys()
    if decided:
        raise TrainerError(f"model_options: {', '.join(sorted(decided))} is decided by data {config.data!r}")
    with _SEEDED:
        torch.manual_seed(config.seed)
        return MODELS.build(config.model, **dataset.shape, **config.model_options)


def _sampler(config: FitConfig, dataset: Dataset, comm: Communicator) -> Sampler:
    counts = dataset.task.counts(dataset.train[1])
    global_batch = config.global_batch_for(comm.size)
    return Sampler(len(counts), global_batch, config.seed, comm.rank, comm.size, counts)


def _start_folder(config: FitConfig) -> None:
    """Makes config.out hold the options of this run and no weights of an earlier one."""
    with writing(config.out):
        for name in (FINAL, LAST_GOOD):
            (config.out / name).unlink(missing_ok=True)
    config.save(config.out / CONFIG_FILE)
