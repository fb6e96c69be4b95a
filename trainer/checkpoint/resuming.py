"""Which checkpoint a run goes on from, whether it is one of this run, and what of it is not the strategy's.

What decides the numbers must be as it was (`kept_options`); ranks, strategy and whatever else says only how
or how long to compute may change. A schedule is a function of the step, so it is replayed rather than stored,
and random numbers and the order of samples are drawn anew for each step (streams.py, sampler.py).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from pycomm import Communicator
from trainer import exact
from trainer.checkpoint.slices import MODEL, OPTIMIZER, model_tensors, parameters
from trainer.checkpoint.stored import FOLDER, Checkpoint, Record, last_good, saved
from trainer.config import FitConfig
from trainer.errors import TrainerError
from trainer.files import on_every_rank
from trainer.optimizers import learning_rate
from trainer.reading import Source
from trainer.state import check_equal
from trainer.stopping import Stopping

NONE, AUTO = "none", "auto"
# Options that may change from run to run: they say only how, where or how long to compute.
FREE = {
    "strategy", "strategy_options", "codec", "overlap", "bucket_mb", "threads", "device", "out", "plugin",
    "steps", "epochs", "eval_every", "eval_every_epochs", "patience", "tolerance", "save_every", "keep",
    "resume", "tensorboard", "accumulate", "recompute", "compile", "workers", "worker_start",
}  # fmt: skip


def find(config: FitConfig, comm: Communicator) -> Checkpoint | None:
    """The checkpoint that `config.resume` means, whole to the last byte; None for a run from the start.

    Collective: each rank reads some of its files. Raises CollectiveError for one that is damaged, naming the
    last good one, and for a folder with checkpoints that the run would neither continue nor leave alone.
    """
    found = on_every_rank(comm, lambda: _open(config))
    sha256 = found.index["sha256"] if found else "0" * 64
    check_equal(sha256, comm, f"the checkpoints that ranks find for resume {config.resume!r}")
    if found is not None:
        checkpoint = found
        on_every_rank(comm, lambda: _whole(checkpoint, comm))
    return found


def _open(config: FitConfig) -> Checkpoint | None:
    folder = config.out / FOLDER
    there = saved(folder)
    newest = max(there, default=0)
    if config.resume == NONE:
        if there:
            raise TrainerError(
                f"{folder} has checkpoints of an earlier run, up to step {newest}: --resume auto goes on "
                "from there; to start anew, remove the folder or give another --out"
            )
        return None
    if config.resume == AUTO:
        return _opened(there[newest]) if there else None
    checkpoint = _opened(Path(config.resume).resolve())  # its rows are two folders above
    if there and not checkpoint.path.parent.samefile(folder):
        raise TrainerError(
            f"{folder} has checkpoints of another run than {config.resume}: give another --out"
        )
    if newest > checkpoint.step:
        raise TrainerError(
            f"{folder} has checkpoints up to step {newest}, later than {config.resume}: move those away, or "
            "give another --out"
        )
    return checkpoint


def _opened(path: Path) -> Checkpoint:
    try:
        return Checkpoint(path)
    except TrainerError as error:
        raise TrainerError(f"{error}{_instead(path)}") from error


def _whole(checkpoint: Checkpoint, comm: Communicator) -> None:
    try:
        checkpoint.verify(comm.rank, comm.size)
    except TrainerError as error:
        raise TrainerError(f"{error}{_instead(checkpoint.path)}") from error


def _instead(path: Path) -> str:
    steps = [step for step, other in saved(path.parent).items() if other.name == path.name]
    good = last_good(path.parent, steps[0]) if steps else None
    if good is not None:
        return f"; the last good one is {good}: move {path.name} away and resume from that"
    return "; there is no earlier good one" if steps else ""


# ---- what a checkpoint says besides its tensors


def kept_options(config: FitConfig, source: Source) -> Record:
    """The others, which decide what is computed; with the values that defaults and the ranks have led to."""
    options = {name: value for name, value in asdict(config).items() if name not in FREE}
    del options["batch_per_rank"]
    options |= {"lr": learning_rate(config.optimizer, config.lr), "global_batch": source.global_batch}
    options |= exact.kept(config)
    plain: Record = json.loads(json.dumps(options, default=str))
    return plain


def facts(
    config: FitConfig, model: nn.Module, source: Source, data_sha256: str, stopping: Stopping, step: int
) -> Record:
    """After that step."""
    return {
        "options": kept_options(config, source),
        "data_sha256": data_sha256,
        "sampler": source.position(step),
        "stopping": stopping.state(),
        "names": _names(model),
    }


def check_same(
    checkpoint: Checkpoint, config: FitConfig, model: nn.Module, source: Source, data_sha256: str
) -> None:
    """Raises TrainerError where the run is not the one that the checkpoint is of. Does not communicate."""
    index, path = checkpoint.index, checkpoint.path
    now = kept_options(config, source)
    then = {**asdict(FitConfig()), **index["options"]}  # an option that there was not yet had its default
    for name in {**index["options"], **now}:
        if now.get(name) != then.get(name):
            raise TrainerError(
                f"{name}: {path} is of a run with {then.get(name)!r}, this one has {now.get(name)!r}"
            )
    same_data = index["data_sha256"] == data_sha256
    if same_data or config.data_local:  # which has other data on other ranks, and says so
        source.resume(index["sampler"], checkpoint.step, str(path))
    if not same_data:
        raise TrainerError(f"data {config.data!r} is not, bit for bit, what {path} was trained on")
    _check_names(checkpoint, model)


def _names(model: nn.Module) -> dict[str, str]:
    """The names of a `state_dict`, each with the name that the checkpoint has its tensor under."""
    first: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}


def _check_names(checkpoint: Checkpoint, model: nn.Module) -> None:
    expected: dict[str, Any] = {
        name: f"{tensor.dtype} {tuple(tensor.shape)}" for name, tensor in model_tensors(model).items()
    }
    names = [name for name in checkpoint.names() if name.startswith(MODEL)]
    got = {name: f"{checkpoint.dtype(name)} {checkpoint.shape(name)}" for name in names}
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise TrainerError(
                f"{checkpoint.path} is of another model: expected {name} as {expected.get(name, 'nothing')}, "
                f"got {got.get(name, 'nothing')}"
            )
    known = parameters(model)
    for name in checkpoint.names():
        owner = name.removeprefix(OPTIMIZER).rpartition(".")[0]
        if name.startswith(OPTIMIZER) and owner not in known:
            raise TrainerError(f"{checkpoint.path} is of another model: it has {name} but no such parameter")
