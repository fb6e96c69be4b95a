"""What a run needs, made and checked before anything of it is on the disk: for `fit` and for a dry run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from pycomm import Communicator
from trainer import exact as exact_mode
from trainer import streams
from trainer.adaptation import adapt
from trainer.checkpoint.resuming import check_same, facts
from trainer.checkpoint.stored import Checkpoint
from trainer.config import FitConfig
from trainer.data import Dataset
from trainer.errors import TrainerError
from trainer.exact import Exact
from trainer.files import on_every_rank
from trainer.models import MODELS
from trainer.optimizers import make_optimizer
from trainer.precision import Precision, make_16_bit
from trainer.reading import Share, Source
from trainer.reading.loading import Loaded, Reading, load
from trainer.reading.memory import readable
from trainer.reading.workers import Workers
from trainer.registry import taken, together
from trainer.schedules import make_schedule, replay
from trainer.stopping import Stopping
from trainer.strategy import STRATEGIES, Strategy
from trainer.validation import Validation, check_patience
from trainer.weights import save_weights


@dataclass
class Local:
    """What a rank makes without the others."""

    seed: int
    exact: Exact | None
    dataset: Dataset
    data_sha256: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    source: Source
    steps: int
    schedule: LRScheduler


@dataclass
class Run(Local):
    """`accumulate`: micro-batches of a step. `joint_forward`: a forward needs all ranks, also those that have
    no sample. `done`: steps that an earlier run has done. `spread`: of samples over ranks, where each has its
    own."""

    strategy: Strategy
    validation: Validation
    precision: Precision
    accumulate: int
    joint_forward: bool
    done: int
    spread: dict[str, Any] | None = None

    def save(self, path: Path, step: int, *, write: bool) -> None:
        """Writes the model, as it is after that step, on the rank that is to `write`. Collective where the
        model is in shards. Raises TrainerError."""
        if write or self.strategy.sharded:
            whole = self.strategy.whole
            save_weights(path, self.model, step, self.data_sha256, whole=whole, write=write)

    def facts(self, config: FitConfig, step: int) -> dict[str, Any]:
        """What a checkpoint after that step says besides its tensors."""
        same = facts(config, self.model, self.source, self.data_sha256, self.validation.stopping, step)
        return {**same, "scaler": self.precision.scaler and self.precision.scaler.state()}


def prepare(
    config: FitConfig, comm: Communicator, ranks: int | None = None, checkpoint: Checkpoint | None = None
) -> Run:
    """Makes the parts of a run, on `comm` but with the shares of that many `ranks` (those of `comm` if not
    given), as they are at the start or were at a checkpoint. Collective; `config.check()` comes before it.

    Raises CollectiveError where the parts of some rank cannot be made, or its data are other data, or the
    checkpoint is one of another run.
    """
    reading, exact = reading_of(config, comm, ranks), exact_mode.of(config)
    if exact is not None:
        on_every_rank(comm, partial(exact.check_ranks, reading.size))
    loaded = load(config.data, config.data_options, reading, comm)
    batch, task = config.global_batch_for(reading.size), loaded.dataset.task
    shards = exact.shards if exact else reading.size
    share = Share(comm, reading.rank, reading.size, batch, config.seed, task, shards)
    source = readable(loaded.dataset.train).source(share)
    local = on_every_rank(comm, lambda: _local(config, exact, loaded, source, checkpoint))
    joint_forward = adapt(local.model, config, comm)
    strategy = on_every_rank(comm, lambda: _strategy(config, comm, local))
    every = config.evaluation_steps_for(source.steps_per_epoch)
    stopping = Stopping(config.patience, config.tolerance)
    validation = Validation(local.model, local.dataset, strategy, comm, every, local.steps, stopping, shards)
    run = Run(
        **vars(local),
        strategy=strategy,
        validation=validation,
        precision=Precision.of(config.precision, comm),
        accumulate=config.accumulate,
        joint_forward=joint_forward,
        done=0,
        spread=loaded.spread,
    )
    if checkpoint is not None:
        on_every_rank(comm, lambda: _load(strategy, checkpoint))
        stopping.restore(checkpoint.index["stopping"])
        if run.precision.scaler is not None:
            run.precision.scaler.restore(checkpoint.index["scaler"])
        validation.resume(checkpoint.step)
        run.done = checkpoint.step
    return run


def reading_of(config: FitConfig, comm: Communicator, ranks: int | None = None) -> Reading:
    """How a rank of that many reads the data of a run."""
    workers = Workers(config.workers, config.worker_start)
    return Reading(config.seed, workers, config.data_local, comm.rank, ranks or comm.size)


def build_model(config: FitConfig, dataset: Dataset) -> nn.Module:
    """The model, with initial parameters drawn from the seed; the data set decides its outer sizes, of those
    that a model of the user's own takes."""
    shape = dataset.shape
    if ":" in config.model:
        shape = taken(MODELS.factory(config.model), shape)
    options = together("model_options", config.model_options, shape, f"data {config.data!r}")
    with streams.SHARED:
        torch.manual_seed(config.seed)
        model = MODELS.build(config.model, **options)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainerError(
            f"model {config.model!r}: expected a parameter to train, got none that needs gradients"
        )
    return make_16_bit(model, config.precision)


def _local(
    config: FitConfig, exact: Exact | None, loaded: Loaded, source: Source, checkpoint: Checkpoint | None
) -> Local:
    dataset = loaded.dataset
    if exact and source.samples is None:
        raise TrainerError("exact: a stream is dealt out to ranks as it comes; expected samples with numbers")
    check_patience(config.patience, dataset)
    model = build_model(config, dataset)
    if exact:
        exact_mode.check_model(model)
    optimizer = make_optimizer(config.optimizer, model.parameters(), config.lr, **config.optimizer_options)
    source.steps = steps = config.steps_for(source.steps_per_epoch)
    schedule = make_schedule(
        config.schedule, optimizer, steps, config.warmup_steps, **config.schedule_options
    )
    if checkpoint is not None:
        check_same(checkpoint, config, model, source, loaded.sha256)
        skipped = (checkpoint.index.get("scaler") or {}).get("skipped", 0)
        replay(schedule, optimizer, checkpoint.step - skipped)
    return Local(config.seed, exact, dataset, loaded.sha256, model, optimizer, source, steps, schedule)


def _strategy(config: FitConfig, comm: Communicator, local: Local) -> Strategy:
    wire = config.wire()
    parts = local.model, comm, local.optimizer, wire
    strategy = STRATEGIES.build(config.strategy, *parts, **config.strategy_options)
    if strategy.exact != wire.exact:
        raise TrainerError(f"exact: strategy {config.strategy!r} does not say that it can be")
    if config.clip_norm is not None and type(strategy).clip_grad_norm_ is Strategy.clip_grad_norm_:
        raise TrainerError(f"clip_norm: strategy {type(strategy).__name__} does not clip gradients")
    if config.wire().master_weights and not strategy.has_master_weights:
        raise TrainerError(
            f"precision {config.precision}: strategy {config.strategy!r} has no master weights"
        )
    if config.save_every and type(strategy).state_slices is Strategy.state_slices:
        raise TrainerError(
            f"save_every: strategy {config.strategy!r} cannot be saved: it has no state_slices()"
        )
    return strategy


def _load(strategy: Strategy, checkpoint: Checkpoint) -> None:
    with checkpoint:
        strategy.load_slices(checkpoint)
