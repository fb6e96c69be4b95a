"""The options of a run. The command line, a YAML file (`--config`) and Python fill the same dataclass.

The parts of the trainer get the options they need as arguments; only fit() and predict() see these classes.
"""

from __future__ import annotations

import importlib
import math
from argparse import ArgumentError
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainer import tensorboard
from trainer.errors import TrainerError, naming_extras
from trainer.files import replacing

if TYPE_CHECKING:
    from trainer.strategy import Wire

CONFIG_FILE = "config.yaml"  # in a run's folder
DEFAULT_EPOCHS = 5
DEFAULT_GLOBAL_BATCH = 128


@dataclass
class FitConfig:
    """What to train, on what, how, and where the results go.

    Args:
        data: name of the data set, or module:function of your own, which returns a trainer.Dataset
        model: name of the model, or module:function of your own, which returns a torch.nn.Module
        strategy: name of the strategy, which decides where and when parameters are updated
        out: folder for metrics, summary, weights and these options; files of an earlier run are replaced, but
            one with checkpoints is refused, unless it is resumed
        steps: how many optimizer steps (not together with epochs)
        epochs: how many passes over the training data (5 if neither epochs nor steps is given)
        global_batch: samples per step over all ranks (128 if not given; not together with batch_per_rank);
            a batch of more samples than there are takes them all
        batch_per_rank: samples per step and rank, so that the global batch grows with the ranks
        optimizer: name of the optimizer
        lr: learning rate (a default of the optimizer if not given)
        schedule: how the learning rate changes from step to step
        warmup_steps: steps before that in which it rises in a straight line from almost nothing
        eval_every: evaluate after every so many steps, on the validation split if there is one
            (data_options.validation_fraction), else on the test split; 0 only at the end. Weights of the
            lowest validation loss are kept
        eval_every_epochs: the same, counted in passes over the training data
        patience: stop after so many evaluations without a better validation loss (never if not given)
        tolerance: by how much a validation loss has to be less to be better
        grad_reduction: global_mean divides the sum of all samples' losses by their number. For study:
            rank_mean averages each rank's mean, sum adds these means, so that the step grows with the ranks
        accumulate: micro-batches in which each rank takes its samples of a step, one after the other; the
            step stays that of the whole global batch
        precision: bf16 and fp16 compute in 16 bits where that helps (autocast); bf16_params and fp16_params
            are models of 16-bit parameters, with float32 master weights in the optimizer
        clip_norm: scale gradients down to this norm, of all parameters together (never if not given)
        save_every: write a checkpoint after every so many steps and after the last one, 0 for none
        keep: how many checkpoints, the newest ones, are kept
        resume: auto goes on from the newest checkpoint in out, or begins if there is none; or the folder of a
            checkpoint. Ranks, strategy, codec, threads and paths may change, and steps or epochs; data,
            model, optimizer, their options, lr, schedule, global batch and seed may not
        exact: the same bits on any number of ranks that divides `shards`, whatever the strategy. A rank
            computes its shards of a batch one by one, with one thread
        shards: of exact, a power of two: into how many parts a global batch is cut (8 if not given)
        tensorboard: write the numbers of each step to the folder tensorboard in out, too
        seed: decides initial parameters, splits and the order of samples, whatever the number of ranks
        threads: compute threads of each rank (the cores that the rank has for itself if not given)
        codec: how gradients travel: none, fp16 or bf16
        overlap: launch reductions during backward; auto does where a rank has cores to spare
        bucket_mb: size of a gradient bucket in MiB (of zero3 a block is a bucket)
        device: where the model computes
        sync_batchnorm: BatchNorm normalises over the samples of all ranks (of a micro-batch)
        recompute: keep only what goes into each block of the model, and compute the rest again in backward
        compile: torch.compile the model; needs a C++ compiler
        workers: processes of each rank that read samples of a torch Dataset ahead, 0 for none
        worker_start: how they start; what is not forked needs data sets that can be pickled
        data_local: each rank has samples of its own, in files that nobody else reads; {rank} and {size} in
            data_options are then numbers, and a factory that takes rank and size is given them
        data_options: options of the data set, such as validation_fraction
        model_options: options of the model, such as hidden
        optimizer_options: options of the optimizer, such as momentum
        schedule_options: options of the schedule, such as final
        strategy_options: options of the strategy
        plugin: module to import first, which registers data sets, models or strategies of your own; or a
            list of such
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
    schedule: Literal["constant", "linear", "cosine", "step"] = "constant"
    warmup_steps: int = 0
    eval_every: int = 0
    eval_every_epochs: int = 0
    patience: int | None = None
    tolerance: float = 0.0
    grad_reduction: Literal["global_mean", "rank_mean", "sum"] = "global_mean"
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "fp16", "bf16_params", "fp16_params"] = "fp32"
    clip_norm: float | None = None
    save_every: int = 0
    keep: int = 2
    resume: str = "none"
    exact: bool = False
    shards: int | None = None
    tensorboard: bool = False
    seed: int = 0
    threads: int | None = None
    codec: str = "none"
    overlap: Literal["auto", "on", "off"] = "auto"
    bucket_mb: float = 25.0
    device: Literal["cpu"] = "cpu"
    sync_batchnorm: bool = False
    recompute: bool = False
    compile: bool = False
    workers: int = 0
    worker_start: Literal["fork", "spawn", "forkserver"] = "fork"
    data_local: bool = False
    data_options: dict[str, Any] = field(default_factory=dict)
    model_options: dict[str, Any] = field(default_factory=dict)
    optimizer_options: dict[str, Any] = field(default_factory=dict)
    schedule_options: dict[str, Any] = field(default_factory=dict)
    strategy_options: dict[str, Any] = field(default_factory=dict)
    plugin: list[str] | str = field(default_factory=list)

    def __post_init__(self) -> None:
        self.out = Path(self.out)
        self.plugin = [self.plugin] if isinstance(self.plugin, str) else list(self.plugin)

    def check(self) -> None:
        """Imports the plug-ins. Raises TrainerError for what can be seen to be wrong before a run starts."""
        from trainer import exact

        self._check_numbers()
        exact.check(self)
        self._check_options()
        for module in self.plugin:
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as error:
                raise TrainerError(f"plugin {module!r}: {error}") from error
        self._check_parts()
        if self.tensorboard:
            tensorboard.check_installed()

    def global_batch_for(self, size: int) -> int:
        """Samples per step over all `size` ranks."""
        if self.batch_per_rank is not None:
            return self.batch_per_rank * size
        return DEFAULT_GLOBAL_BATCH if self.global_batch is None else self.global_batch

    def steps_for(self, steps_per_epoch: int | None) -> int:
        """Raises TrainerError for epochs of a stream, whose steps nobody knows."""
        if self.steps is not None:
            return self.steps
        if steps_per_epoch is None:
            raise TrainerError("training data is a stream, whose length is unknown: give steps, not epochs")
        return steps_per_epoch * (DEFAULT_EPOCHS if self.epochs is None else self.epochs)

    def evaluation_steps_for(self, steps_per_epoch: int | None) -> int:
        """Steps from one evaluation to the next; 0 for none before the end. Raises TrainerError as
        steps_for()."""
        if steps_per_epoch is None and self.eval_every_epochs:
            raise TrainerError("training data is a stream: give eval_every, not eval_every_epochs")
        steps_per_epoch = steps_per_epoch or 0
        return self.eval_every or self.eval_every_epochs * steps_per_epoch

    def wire(self) -> Wire:
        """How gradients travel."""
        from trainer import exact
        from trainer.precision import has_master_weights
        from trainer.strategy import Wire

        return Wire(
            self.codec,
            self.overlap,
            int(self.bucket_mb * 2**20),
            self.grad_reduction,
            has_master_weights(self.precision),
            exact.of(self),
        )

    def threads_for(self, cores: int) -> int:
        """Compute threads of a rank that has so many cores for itself."""
        return 1 if self.exact else self.threads or max(1, cores)

    def save(self, path: Path) -> None:
        """Writes a YAML file that `--config` and read_config() take."""
        with replacing(path) as partial:
            partial.write_text(_yaml({**asdict(self), "out": str(self.out)}))

    def _check_numbers(self) -> None:
        for one, other, unset in (
            ("global_batch", "batch_per_rank", "null"),
            ("steps", "epochs", "null"),
            ("eval_every", "eval_every_epochs", "0"),
        ):
            if getattr(self, one) and getattr(self, other):
                raise TrainerError(
                    f"give {one} or {other}, not both: each decides the other "
                    f"(--{one} {unset} unsets what a file has set)"
                )
        if self.patience and not (self.eval_every or self.eval_every_epochs):
            raise TrainerError("patience counts evaluations: give eval_every or eval_every_epochs too")
        least: dict[str, float] = dict.fromkeys(
            (
                "steps",
                "epochs",
                "global_batch",
                "batch_per_rank",
                "accumulate",
                "threads",
                "patience",
                "keep",
            ),
            1,
        )
        least |= dict.fromkeys(("eval_every", "eval_every_epochs", "save_every", "workers"), 0)
        least |= dict.fromkeys(("warmup_steps", "tolerance", "seed"), 0)
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and not minimum <= value < math.inf:
                raise TrainerError(f"{name}: expected {minimum} or more, got {value}")
        for name in ("lr", "bucket_mb", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise TrainerError(f"{name}: expected more than 0, got {value}")

    def _check_options(self) -> None:
        for option in fields(self):
            if option.name.endswith("_options"):
                for name, value in getattr(self, option.name).items():
                    try:
                        _yaml(value)
                    except ValueError as error:
                        raise TrainerError(
                            f"{option.name}.{name}: expected text, a number, a list or a dict, which "
                            f"{CONFIG_FILE} can hold, got {value!r} of {type(value).__name__}"
                        ) from error

    def _check_parts(self) -> None:
        """Names, and the options of what can be tried without the data."""
        import torch

        import pycomm
        from trainer.data import DATA
        from trainer.models import MODELS
        from trainer.optimizers import make_optimizer
        from trainer.precision import check_codec
        from trainer.reading.loading import Reading, factory_options
        from trainer.schedules import make_schedule
        from trainer.strategy import STRATEGIES

        MODELS.factory(self.model)
        STRATEGIES.bind(self.strategy, "model", "comm", "optimizer", "wire", **self.strategy_options)
        STRATEGIES.check(self.strategy, self.wire(), **self.strategy_options)
        reading = Reading(self.seed, local=self.data_local)
        options = factory_options(self.data, self.data_options, reading)
        validation_fraction = DATA.bind(self.data, **options).get("validation_fraction")
        if self.patience and validation_fraction == 0:
            raise TrainerError("patience needs a validation split: set data_options.validation_fraction")
        probe = torch.zeros(1, requires_grad=True)
        optimizer = make_optimizer(self.optimizer, [probe], self.lr, **self.optimizer_options)
        steps = self.warmup_steps + 1 if self.steps is None else self.steps
        make_schedule(self.schedule, optimizer, steps, self.warmup_steps, **self.schedule_options)
        codecs = pycomm.info()["codecs"]
        if self.codec not in codecs:
            raise TrainerError(f"no codec {self.codec!r}; there is {', '.join(codecs)}")
        check_codec(self.precision, self.codec)


def read_config(path: Path) -> FitConfig:
    """The options that FitConfig.save() wrote. Raises TrainerError for what is none of them."""
    with naming_extras("predict"):
        import yaml
        from jsonargparse import ArgumentParser
    if not path.is_file():
        raise TrainerError(f"{path} does not exist: expected the folder given to fit as --out")
    try:
        options = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TrainerError(f"{path} is no YAML file: {error}") from error
    if not isinstance(options, dict):
        raise TrainerError(f"{path}: expected options of fit, got {options}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(FitConfig)
    try:
        parsed = parser.parse_object({"out": str(path.parent), **options})
    except ArgumentError as error:
        raise TrainerError(f"{path}: expected options of fit: {error}") from error
    return FitConfig(**parsed.as_dict())


def _yaml(value: Any) -> str:
    """Raises ValueError for what is more than text, numbers, lists and dicts."""
    with naming_extras("fit"):
        import yaml
    try:
        return str(yaml.safe_dump(value, sort_keys=False))
    except yaml.representer.RepresenterError as error:
        raise ValueError(str(error)) from error


@dataclass
class PredictConfig:
    """Which weights predict what, and where the predictions go.

    Args:
        weights: folder of a run, or a file of weights in it; readable by all ranks
        data: name of the data set (that of the run if not given). The run's own has to be what it was, to the
            bit, so that what is a test sample was one in training
        data_options: options of another data set
        split: which of its samples
        out: NumPy file for the predictions, in the order of the samples
        threads: compute threads of each rank (the cores that the rank has for itself if not given)
    """

    weights: Path
    data: str | None = None
    data_options: dict[str, Any] = field(default_factory=dict)
    split: Literal["train", "validation", "test"] = "test"
    out: Path = Path("predictions.npy")
    threads: int | None = None

    def __post_init__(self) -> None:
        self.weights, self.out = Path(self.weights), Path(self.out)

    def check(self) -> None:
        """Raises TrainerError for what can be seen to be wrong before anything is computed."""
        if self.threads is not None and self.threads < 1:
            raise TrainerError(f"threads: expected 1 or more, got {self.threads}")
        if not self.weights.exists():
            raise TrainerError(f"{self.weights} does not exist: expected the folder given to fit as --out")
