"""The training loop.

Every rank back-propagates the *sum* of its samples' losses; the strategy divides by what the task counts,
samples or tokens, in the batches of all ranks. A step is then the same step whatever the number of ranks,
whether or not it divides the batch, and also where a rank has no sample at all.
"""

from __future__ import annotations

import math
import shutil
import time
from contextlib import closing
from functools import partial
from typing import Any

import torch

from pycomm import Communicator, trace_span
from trainer import tensorboard
from trainer.checkpoint.resuming import find
from trainer.checkpoint.saving import Saver, tidy
from trainer.checkpoint.stored import FOLDER, Checkpoint
from trainer.config import CONFIG_FILE, FitConfig
from trainer.divergence import LastGood
from trainer.errors import DivergedError, TrainerError
from trainer.files import on_every_rank, on_rank_0, replacing, writing
from trainer.folder_lock import FolderLock
from trainer.memory import most
from trainer.metrics import ROWS_FILE, SUMMARY_FILE, Metrics, read_summary
from trainer.passes import forward_backward
from trainer.preparation import Run, prepare
from trainer.rows import read_rows_until
from trainer.scaler import take_step
from trainer.strategy import Strategy
from trainer.summary import headline, summary
from trainer.weights import BEST, FINAL, LAST_GOOD


def fit(config: FitConfig, comm: Communicator) -> dict[str, Any]:
    """Trains, evaluates, writes config.out; returns the summary. Collective."""
    with FolderLock(config.out) as lock:
        return _fit(config, comm, lock)


def _fit(config: FitConfig, comm: Communicator, lock: FolderLock) -> dict[str, Any]:
    on_every_rank(comm, config.check)
    torch.set_num_threads(config.threads_for(comm.cores))
    checkpoint = find(config, comm)
    run = prepare(config, comm, checkpoint=checkpoint)
    strategy, validation = run.strategy, run.validation
    rows = on_every_rank(comm, lambda: _rows_until(checkpoint))
    finished = on_every_rank(comm, lambda: _finished(config, run, checkpoint, rows, comm))
    if finished is not None:
        return finished
    metrics = on_every_rank(comm, lambda: _begin(config, run, comm, checkpoint, rows, lock))
    with (
        metrics,
        LastGood(config.out / LAST_GOOD, run.model, comm, strategy, run.save) as last_good,
        Saver(config.out, comm, config.save_every, config.keep, metrics.sync) as saver,
        closing(run.source),
    ):
        step = run.done
        if validation.ended:  # but for the last words
            held = most(strategy.memory(), comm)
            strategy.close()
            metrics.amend(validation.test(step))
        while not validation.ended:
            step += 1
            start = time.monotonic()
            with trace_span("data", step=step):
                batch = run.source.batch(step - 1)
            run.optimizer.zero_grad(set_to_none=True)
            strategy.before_forward(batch)
            last_good.before(step)
            written = saver.written  # before the trouble: a write that has failed in between is not written
            trouble = metrics.trouble or saver.trouble or run.source.trouble
            loss = forward_backward(run, batch, step, comm, trouble, written)
            with trace_span("step", step=step):
                strategy.synchronize()
                mean_loss = loss.result()
                if loss.all_written:
                    saver.all_written()
                scaler = run.precision.scaler
                scale = None if scaler is None else scaler.scale
                taken = take_step(scaler, strategy, run.model, step, comm)
                norm = _clip(strategy, config.clip_norm, step) if taken and config.clip_norm else None
                if taken:
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
            if scale is not None:
                row |= {"loss_scale": scale, "taken": taken}
            if taken:
                run.schedule.step()
            row |= validation.after(step)
            if validation.improved:
                on_every_rank(comm, partial(run.save, config.out / BEST, step, write=comm.rank == 0))
            if saver.due(step, last=validation.ended is not None):
                with trace_span("save", step=step):
                    saver.save(step, strategy.state_slices(), run.facts(config, step))
            metrics.add(row)  # before anything that can fail: the checkpoint of this step needs it
            if validation.ended:
                held = most(strategy.memory(), comm)
                strategy.close()
                metrics.amend(validation.test(step))
        on_every_rank(comm, partial(run.save, config.out / FINAL, step, write=comm.rank == 0))
        saver.finish(step)
        result = summary(config, run, metrics, comm, held)
        on_rank_0(comm, lambda: metrics.write_summary(result))
    return result


def _clip(strategy: Strategy, max_norm: float, step: int) -> float:
    """The norm before. Raises DivergedError, on every rank, for one that is not finite."""
    norm = strategy.clip_grad_norm_(max_norm)
    if not math.isfinite(norm):
        raise DivergedError(f"the norm of the gradients is {norm} at step {step}", step - 1)
    return norm


def _rows_until(checkpoint: Checkpoint | None) -> list[dict[str, Any]]:
    """The rows of the run that the checkpoint is of; none where it was moved away from them."""
    if checkpoint is None:
        return []
    return read_rows_until(checkpoint.path.parent.parent / ROWS_FILE, checkpoint.step)


def _finished(
    config: FitConfig, run: Run, checkpoint: Checkpoint | None, rows: list[dict[str, Any]], comm: Communicator
) -> dict[str, Any] | None:
    """The summary that is there, of a run that has nothing left to do."""
    if checkpoint is None or not run.validation.ended:
        return None
    nothing = f"nothing to do: {run.done} of {run.steps} steps are done; {run.validation.ended}"
    path = config.out / SUMMARY_FILE
    if path.is_file() and checkpoint.path.parent.resolve() == (config.out / FOLDER).resolve():
        summary = read_summary(path)
        if summary["steps"] == run.done:
            if comm.rank == 0:
                print(f"{nothing} (see {path})", flush=True)
            return summary
    if not rows:
        raise TrainerError(f"{nothing}; and {checkpoint.path} has no metrics.jsonl beside it to sum up")
    return None


def _begin(
    config: FitConfig,
    run: Run,
    comm: Communicator,
    checkpoint: Checkpoint | None,
    rows: list[dict[str, Any]],
    lock: FolderLock,
) -> Metrics:
    """On rank 0, makes config.out hold the options of this run and nothing of an earlier one, but for what a
    checkpoint goes on with."""
    if comm.rank == 0:
        lock.take()
        print(headline(config, comm, run), flush=True)
        if checkpoint is not None:
            print(f"resumed from {checkpoint.path}, after step {run.done}", flush=True)
        config.save(config.out / CONFIG_FILE)
        for name in (FINAL, BEST, LAST_GOOD, SUMMARY_FILE):
            with writing(config.out / name):
                (config.out / name).unlink(missing_ok=True)
        if checkpoint is None:
            tensorboard.clear(config.out)
        if config.save_every:
            tidy(config.out / FOLDER, config.keep)
        if checkpoint is not None and checkpoint.best is not None:
            with replacing(config.out / BEST) as path:
                shutil.copyfile(checkpoint.best, path)
    return Metrics(config.out, comm.rank, run.steps, rows, tensorboard=config.tensorboard)
