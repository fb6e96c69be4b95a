"""What a run needs, made and checked before anything of it is on the disk: for `fit` and for a dry run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from pycomm import Communicator
from trainer import streams
from trainer.checkpoint.resuming import check_same, facts
from trainer.checkpoint.stored import Checkpoint
from trainer.config import FitConfig
from trainer.data import Dataset
from trainer.errors import TrainerError
from trainer.files import on_every_rank
from trainer.models import MODELS
from trainer.optimizers import make_optimizer
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

    dataset: Dataset
    data_sha256: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    source: Source
    steps: int
    schedule: LRScheduler


@dataclass
class Run(Local):
    """`done`: steps that an earlier run has done. `spread`: of samples over ranks, where each has its own."""

    strategy: Strategy
    validation: Validation
    done: int
    spread: dict[str, Any] | None = None

    def save(self, path: Path, step: int) -> None:
        """Writes the model, as it is after that step. One rank calls it. Raises TrainerError."""
        save_weights(path, self.model, step, self.data_sha256)

    def facts(self, config: FitConfig, step: int) -> dict[str, Any]:
        """What a checkpoint after that step says besides its tensors."""
        return facts(config, self.model, self.source, self.data_sha256, self.validation.stopping, step)


def prepare(
    config: FitConfig, comm: Communicator, ranks: int | None = None, checkpoint: Checkpoint | None = None
) -> Run:
    """Makes the parts of a run, on `comm` but with the shares of that many `ranks` (those of `comm` if not
    given), as they are at the start or were at a checkpoint. Collective; `config.check()` comes before it.

    Raises CollectiveError where the parts of some rank cannot be made, or its data are other data, or the
    checkpoint is one of another run.
    """
    reading = reading_of(config, comm, ranks)
    loaded = load(config.data, config.data_options, reading, comm)
    batch, task = config.global_batch_for(reading.size), loaded.dataset.task
    share = Share(comm, reading.rank, reading.size, batch, config.seed, task)
    source = readable(loaded.dataset.train).source(share)
    local = on_every_rank(comm, lambda: _local(config, loaded, source, checkpoint))
    strategy = on_every_rank(comm, lambda: _strategy(config, comm, local))
    every = config.evaluation_steps_for(source.steps_per_epoch)
    stopping = Stopping(config.patience, config.tolerance)
    validation = Validation(local.model, local.dataset, strategy, comm, every, local.steps, stopping)
    if checkpoint is None:
        return Run(**vars(local), strategy=strategy, validation=validation, done=0, spread=loaded.spread)
    on_every_rank(comm, lambda: _load(strategy, checkpoint))
    stopping.restore(checkpoint.index["stopping"])
    validation.resume(checkpoint.step)
    done = checkpoint.step
    return Run(**vars(local), strategy=strategy, validation=validation, done=done, spread=loaded.spread)


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
    return model


def _local(config: FitConfig, loaded: Loaded, source: Source, checkpoint: Checkpoint | None) -> Local:
    dataset = loaded.dataset
    check_patience(config.patience, dataset)
    model = build_model(config, dataset)
    optimizer = make_optimizer(config.optimizer, model.parameters(), config.lr, **config.optimizer_options)
    source.steps = steps = config.steps_for(source.steps_per_epoch)
    schedule = make_schedule(
        config.schedule, optimizer, steps, config.warmup_steps, **config.schedule_options
    )
    if checkpoint is not None:
        check_same(checkpoint, config, model, source, loaded.sha256)
        replay(schedule, optimizer, checkpoint.step)
    return Local(dataset, loaded.sha256, model, optimizer, source, steps, schedule)


def _strategy(config: FitConfig, comm: Communicator, local: Local) -> Strategy:
    parts = local.model, comm, local.optimizer, config.wire()
    strategy = STRATEGIES.build(config.strategy, *parts, **config.strategy_options)
    if config.clip_norm is not None and type(strategy).clip_grad_norm_ is Strategy.clip_grad_norm_:
        raise TrainerError(f"clip_norm: strategy {type(strategy).__name__} does not clip gradients")
    if config.save_every and type(strategy).state_slices is Strategy.state_slices:
        raise TrainerError(
            f"save_every: strategy {config.strategy!r} cannot be saved: it has no state_slices()"
        )
    return strategy


def _load(strategy: Strategy, checkpoint: Checkpoint) -> None:
    with checkpoint:
        strategy.load_slices(checkpoint)
