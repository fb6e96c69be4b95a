"""What a run's options change in its model, after it is built and before a strategy has it."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from pycomm import Communicator
from trainer.config import FitConfig
from trainer.errors import TrainerError
from trainer.files import on_every_rank
from trainer.recomputation import recompute_blocks
from trainer.sync_batch_norm import check_batchnorm, convert_sync_batchnorm, has_sync_batchnorm


def adapt(model: nn.Module, config: FitConfig, comm: Communicator) -> bool:
    """In place; names, parameters and initial values stay. Returns whether forwards are collective.

    Collective. Raises CollectiveError for a model, or a machine, that an option is not for.
    """
    if config.sync_batchnorm:
        on_every_rank(comm, lambda: check_batchnorm(model))
        convert_sync_batchnorm(model, comm)
    if config.recompute:
        on_every_rank(comm, lambda: recompute_blocks(model))
    if config.compile:
        on_every_rank(comm, lambda: compile_forward(model))
    return has_sync_batchnorm(model)


def compile_forward(model: nn.Module) -> None:
    """torch.compile of the forward, at its first call; hooks of the model stay outside. Raises TrainerError
    where there is no C++ compiler, which the CPU's code needs."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise TrainerError(
            f"compile: torch.compile needs a C++ compiler at run time, and there is no {compiler} (the "
            "environment variable CXX names another)"
        )
    model.forward = torch.compile(model.forward)
