"""The options of a run. The command line, a YAML file (`--config`) and Python fill the same dataclass."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trainer.errors import TrainerError

DEFAULT_EPOCHS = 5
DEFAULT_GLOBAL_BATCH = 128


@dataclass
class FitConfig:
    """What to train, on what, how, and where the results go.

    Args:
        data: name of the data set
        model: name of the model
        strategy: name of the strategy, which decides where and when parameters are updated
        out: folder for metrics.jsonl and summary.json; files of an earlier run there are replaced
        steps: how many optimizer steps (not together with epochs)
        epochs: how many passes over the training data (5 if neither epochs nor steps is given)
        global_batch: samples per step over all ranks (128 if not given; not together with batch_per_rank)
        batch_per_rank: samples per step and rank, so that the global batch grows with the ranks
        optimizer: name of the optimizer
        lr: learning rate (a default of the optimizer if not given)
        eval_every: evaluate after every so many steps; 0 only at the end
        seed: decides initial parameters, splits and the order of samples, whatever the number of ranks
        threads: compute threads of each rank (the cores that the rank has for itself if not given)
        codec: how gradients travel: none, fp16 or bf16
        overlap: launch reductions during backward; auto does where a rank has cores to spare
        bucket_mb: size of a gradient bucket in MiB
        device: where the model computes
        data_options: options of the data set, such as test_fraction
        model_options: options of the model, such as hidden
        optimizer_options: options of the optimizer, such as momentum
        strategy_options: options of the strategy
        plugin: modules to import first, which register data sets, models or strategies of your own
    """

    data: str = "mnist5k"
    model: str = "mlp"
    strategy: str = "data_parallel"
    out: Path = Path("runs/last")
    steps: int | None = None
    epochs: int | None = None
    global_batch: int | None = None
    batch_per_rank: int | None = None
    optimizer: Literal["sgd", "adagrad", "adam", "adamw"] = "adam"
    lr: float | None = None
    eval_every: int = 0
    seed: int = 0
    threads: int | None = None
    codec: str = "none"
    overlap: Literal["auto", "on", "off"] = "auto"
    bucket_mb: float = 25.0
    device: Literal["cpu"] = "cpu"
    data_options: dict[str, Any] = field(default_factory=dict)
    model_options: dict[str, Any] = field(default_factory=dict)
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    strategy_options: dict[str, Any] = field(default_factory=dict)
    plugin: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Imports the plug-ins. Raises TrainerError for what can be seen to be wrong before a run starts."""
        self._check_numbers()
        import pycomm
        from trainer.data import DATA
        from trainer.models import MODELS
        from trainer.strategy import STRATEGIES

        for module in self.plugin:
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as error:
                raise TrainerError(f"plugin {module!r}: {error}") from error
        DATA.factory(self.data)
        MODELS.factory(self.model)
        STRATEGIES.factory(self.strategy)
        codecs = pycomm.info()["codecs"]
        if self.codec not in codecs:
            raise TrainerError(f"no codec {self.codec!r}; there is {', '.join(codecs)}")

    def global_batch_for(self, size: int) -> int:
        """Samples per step over all `size` ranks."""
        if self.batch_per_rank is not None:
            return self.batch_per_rank * size
        return DEFAULT_GLOBAL_BATCH if self.global_batch is None else self.global_batch

    def steps_for(self, steps_per_epoch: int) -> int:
        if self.steps is not None:
            return self.steps
        return steps_per_epoch * (DEFAULT_EPOCHS if self.epochs is None else self.epochs)

    def _check_numbers(self) -> None:
        for one, other in (("global_batch", "batch_per_rank"), ("steps", "epochs")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise TrainerError(f"give {one} or {other}, not both: each decides the other")
        least: dict[str, float] = dict.fromkeys(
            ("steps", "epochs", "global_batch", "batch_per_rank", "threads"), 1
        )
        least |= {"eval_every": 0, "seed": 0}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise TrainerError(f"{name}: expected {minimum} or more, got {value}")
        for name in ("lr", "bucket_mb"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise TrainerError(f"{name}: expected more than 0, got {value}")
