"""The training loop.

Every rank back-propagates the *sum* of its samples' losses; the strategy divides by what the task counts,
samples or tokens, in the batches of all ranks. A step is then the same step whatever the number of ranks,
whether or not it divides the batch, and also where a rank has no sample at all.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pycomm import Communicator, trace_span
from trainer.config import CONFIG_FILE, FitConfig
from trainer.divergence import LastGood, StepLoss, check_gradients
from trainer.errors import TrainerError
from trainer.files import on_every_rank, on_rank_0, writing
from trainer.metrics import SUMMARY_FILE, Metrics
from trainer.preparation import Run, prepare
from trainer.sampler import Batch
from trainer.summary import headline, summary
from trainer.weights import BEST, FINAL, LAST_GOOD


def fit(config: FitConfig, comm: Communicator) -> dict[str, Any]:
    """Trains, evaluates, writes config.out; returns the summary. Collective."""
    on_every_rank(comm, config.check)
    torch.set_num_threads(config.threads or max(1, comm.cores))
    run = prepare(config, comm)
    strategy, validation = run.strategy, run.validation
    metrics = on_every_rank(comm, lambda: _begin(config, run, comm))
    with metrics, LastGood(config.out / LAST_GOOD, run.model, comm, run.save) as last_good:
        for step in range(1, run.steps + 1):
            start = time.monotonic()
            with trace_span("data", step=step):
                batch = run.sampler.batch(step - 1)
            run.optimizer.zero_grad(set_to_none=True)
            strategy.before_forward(batch)
            last_good.before(step)
            loss = _forward_backward(run, batch, step, comm, metrics.trouble)
            with trace_span("step", step=step):
                strategy.synchronize()
                mean_loss = loss.result()
                gradients = strategy.gradients(run.model)
                check_gradients(gradients, step, comm, equal=strategy.equal_gradients)
                norm = None if config.clip_norm is None else strategy.clip_grad_norm_(config.clip_norm)
                last_good.updating()
                strategy.step()
            row = {
                "step": step,
                "epoch": batch.epoch,
                "loss": mean_loss,
                "samples": batch.global_samples,
                "lr": run.optimizer.param_groups[0]["lr"],
                "step_ms": 1000 * (time.monotonic() - start),
                "exposed_comm_ms": 1000 * strategy.exposed_s,
            }
            if norm is not None:
                row["grad_norm"] = norm
            run.schedule.step()
            row |= validation.after(step)
            if validation.improved:
                on_rank_0(comm, partial(run.save, config.out / BEST, step))
            if validation.ended:
                strategy.close()
                row |= validation.test(step)
            metrics.add(row)
            if validation.ended:
                break
        on_rank_0(comm, partial(run.save, config.out / FINAL, step))
        result = summary(config, run, metrics, comm)
        on_rank_0(comm, lambda: metrics.write_summary(result))
    return result


def _forward_backward(
    run: Run, batch: Batch, step: int, comm: Communicator, trouble: TrainerError | None
) -> StepLoss:
    """Leaves the gradients of this rank's loss in the parameters; none if the rank has no sample."""
    if not len(batch.indices):
        return StepLoss(0.0, batch, step, comm, trouble)
    inputs, targets = run.dataset.train
    with trace_span("forward", step=step):
        summed: Tensor = run.dataset.task.loss(run.model(inputs[batch.indices]), targets[batch.indices])
    loss = StepLoss(summed.item(), batch, step, comm, trouble)
    with trace_span("backward", step=step):
        run.strategy.loss(summed, batch).backward()
    return loss


def _begin(config: FitConfig, run: Run, comm: Communicator) -> Metrics:
    """On rank 0, makes config.out hold the options of this run and nothing else of an earlier one."""
    if comm.rank == 0:
        print(headline(config, comm, run.sampler, run.dataset), flush=True)
        config.save(config.out / CONFIG_FILE)
        for name in (FINAL, BEST, LAST_GOOD, SUMMARY_FILE):
            with writing(config.out / name):
                (config.out / name).unlink(missing_ok=True)
    return Metrics(config.out, comm.rank, run.steps)
