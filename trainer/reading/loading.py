"""A run's data set, from its name and options, on one rank: made, looked at, and ready to be read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset, TensorDataset

from pycomm import Communicator
from trainer.data import DATA, Dataset, Split
from trainer.errors import TrainerError
from trainer.files import on_every_rank
from trainer.reading.local import Own
from trainer.reading.mapped import Mapped
from trainer.reading.memory import readable
from trainer.reading.samples import has_nan, nan_row
from trainer.reading.statistics import spread, standardised
from trainer.reading.stream import Stream
from trainer.reading.threads import one_thread
from trainer.reading.workers import Workers
from trainer.registry import taken, together
from trainer.state import check_equal, data_sha256, hash_of


@dataclass(frozen=True)
class Reading:
    """How a rank reads. `local`: it has samples of its own."""

    seed: int
    workers: Workers = field(default_factory=Workers)
    local: bool = False
    rank: int = 0
    size: int = 1


@dataclass(frozen=True)
class Loaded:
    """`sha256`: of the data of all ranks. `spread`: where ranks have their own, what is known of that."""

    dataset: Dataset
    sha256: str
    spread: dict[str, Any] | None


def load(name: str, options: Mapping[str, Any], reading: Reading, comm: Communicator) -> Loaded:
    """Collective, blocks. Raises CollectiveError where some rank has no such data, or, unless each has its
    own, other data than rank 0.

    Data are made by one compute thread: bits of a mean over them would else depend on the number of threads,
    and a run could be neither resumed nor used where that is another.
    """
    with one_thread():
        dataset = on_every_rank(comm, lambda: build_dataset(name, options, reading))
        kinds = hash_of(
            (kind, part[:0]) for kind, split in dataset.splits().items() for part in _first(split)
        )
        check_equal(kinds, comm, f"splits, dtypes or shapes of samples of data {name!r}")
        dataset = standardised(dataset, comm)
    sha256 = on_every_rank(comm, lambda: data_sha256(dataset))
    if reading.local:
        return Loaded(dataset, _together(sha256, comm), spread(dataset, comm))
    check_equal(sha256, comm, f"data {name!r}")
    return Loaded(dataset, sha256, None)


def build_dataset(name: str, options: Mapping[str, Any], reading: Reading) -> Dataset:
    """Its splits are Readables, but for tensors that all ranks have. Does not communicate."""
    dataset = DATA.build(name, **factory_options(name, options, reading))
    read: dict[str, Any] = {}
    for split, value in dataset.splits().items():
        read[split] = _readable(split, value, dataset, reading)
        _first(read[split])  # so that a sample which is none is told before training
    return replace(dataset, **read)


def factory_options(name: str, options: Mapping[str, Any], reading: Reading) -> dict[str, Any]:
    """What the factory is called with: `options`, seed, and with local data rank and size, as far as it takes
    them; {rank} and {size} in texts are then these numbers."""
    decided: dict[str, Any] = {"seed": reading.seed}
    given = dict(options)
    if reading.local:
        decided |= taken(DATA.factory(name), {"rank": reading.rank, "size": reading.size})
        given = {option: _of_rank(value, reading) for option, value in given.items()}
    if ":" in name:
        decided = taken(DATA.factory(name), decided)
    return together("data_options", given, decided, "--seed and the launcher")


def _readable(name: str, split: Split, dataset: Dataset, reading: Reading) -> Split:
    if isinstance(split, TensorDataset) and len(split.tensors) == 2 and dataset.collate is None:
        split = split.tensors[0], split.tensors[1]
    _check_nan(name, split)
    parts = split, name, reading.seed, reading.workers, dataset.collate
    if isinstance(split, IterableDataset):
        split = Stream(*parts)
    elif isinstance(split, TorchDataset):
        split = Mapped(*parts)
    return Own(readable(split)) if reading.local else split


def _first(split: Split) -> tuple[Any, Any]:
    return readable(split).first()


def _check_nan(name: str, split: Split) -> None:
    for what, part in zip(("inputs", "targets"), split if isinstance(split, tuple) else (), strict=False):
        if has_nan(part):
            raise TrainerError(f"{name} data: the {what} of sample {nan_row(part)} hold nan")


def _of_rank(value: Any, reading: Reading) -> Any:
    if isinstance(value, str):
        return value.replace("{rank}", str(reading.rank)).replace("{size}", str(reading.size))
    return [_of_rank(part, reading) for part in value] if isinstance(value, list) else value


def _together(sha256: str, comm: Communicator) -> str:
    """Hash of all ranks' hashes, in their order. Collective."""
    mine = torch.frombuffer(bytearray(bytes.fromhex(sha256)), dtype=torch.uint8)
    return hashlib.sha256(comm.all_gather(mine).numpy().tobytes()).hexdigest()
