"""The training program on top of pycomm, and the parts of it that a loop of your own can use.

    from trainer import DataParallel, Zero      # in your own loop
    python -m trainer fit --help                # the program

Names are loaded when first used, so that `import trainer` works without torch and a missing extra is reported
by the name of what asked for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.config import FitConfig as FitConfig
    from trainer.config import PredictConfig as PredictConfig
    from trainer.data import DATA as DATA
    from trainer.data import Dataset as Dataset
    from trainer.errors import TrainerError as TrainerError
    from trainer.models import MODELS as MODELS
    from trainer.prediction import predict as predict
    from trainer.scaler import LossScaler as LossScaler
    from trainer.strategies.data_parallel import DataParallel as DataParallel
    from trainer.strategy import STRATEGIES as STRATEGIES
    from trainer.strategy import Strategy as Strategy
    from trainer.strategy import Wire as Wire
    from trainer.sync_batch_norm import SyncBatchNorm as SyncBatchNorm
    from trainer.sync_batch_norm import convert_sync_batchnorm as convert_sync_batchnorm
    from trainer.train import fit as fit
    from trainer.uneven_batches import uneven as uneven
    from trainer.zero import Zero as Zero

_HOME = {
    "DATA": "trainer.data",
    "DataParallel": "trainer.strategies.data_parallel",
    "Dataset": "trainer.data",
    "FitConfig": "trainer.config",
    "LossScaler": "trainer.scaler",
    "MODELS": "trainer.models",
    "PredictConfig": "trainer.config",
    "STRATEGIES": "trainer.strategy",
    "Strategy": "trainer.strategy",
    "SyncBatchNorm": "trainer.sync_batch_norm",
    "TrainerError": "trainer.errors",
    "Wire": "trainer.strategy",
    "Zero": "trainer.zero",
    "convert_sync_batchnorm": "trainer.sync_batch_norm",
    "fit": "trainer.train",
    "predict": "trainer.prediction",
    "uneven": "trainer.uneven_batches",
}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")
    from trainer.errors import naming_extras

    with naming_extras(f"trainer.{name}"):
        return getattr(importlib.import_module(_HOME[name]), name)
