"""Predictions of a trained model over all ranks: every sample once, in order, at any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pycomm import Communicator
from trainer.config import CONFIG_FILE, FitConfig, PredictConfig, read_config
from trainer.data import Dataset, Split
from trainer.errors import TrainerError
from trainer.evaluate import forwards
from trainer.files import on_every_rank, on_rank_0, replacing
from trainer.preparation import build_model, reading_of
from trainer.reading.loading import load
from trainer.reading.memory import readable
from trainer.weights import FINAL, load_weights, trained_on


def predict(config: PredictConfig, comm: Communicator) -> dict[str, Any]:
    """Writes config.out, an array whose row i is the prediction for sample i; returns what it holds.

    What a prediction is, the data set's task says: a class for images, the next byte at each position for
    text, the output itself for regression. Model, seed and options come from the run. Every rank computes
    its share of the samples, with data_local those that it has, and rank 0 writes. Collective, blocks.
    """
    on_every_rank(comm, config.check)
    torch.set_num_threads(config.threads or max(1, comm.cores))
    run, weights = on_every_rank(comm, lambda: _run_of(config))
    trained = _load(config, run, weights, comm)
    mine = on_every_rank(comm, lambda: _predictions(trained, comm))
    counts = comm.all_gather(np.array([len(mine)])).tolist()
    rows = _gather(mine, counts, comm)
    on_rank_0(comm, lambda: _write(config.out, readable(trained.split).arranged(rows)))
    return {"weights": trained.weights, "step": trained.step, "count": sum(counts)}


@dataclass
class _Trained:
    weights: Path
    step: int
    model: nn.Module
    dataset: Dataset
    split: Split


def _run_of(config: PredictConfig) -> tuple[FitConfig, Path]:
    """The options of the run, and its weights."""
    weights = config.weights / FINAL if config.weights.is_dir() else config.weights
    run = read_config(weights.parent / CONFIG_FILE)
    run.check()
    return run, weights


def _load(config: PredictConfig, run: FitConfig, weights: Path, comm: Communicator) -> _Trained:
    """Collective."""
    data = config.data or run.data
    own = data == run.data
    options = {**(run.data_options if own else {}), **config.data_options}
    loaded = load(data, options, reading_of(run, comm), comm)

    def trained() -> _Trained:
        model = build_model(run, loaded.dataset)
        step = load_weights(weights, model)
        if own and loaded.sha256 != trained_on(weights):
            raise TrainerError(
                f"data {data!r} with {options or 'no options'} is not, bit for bit, what {weights} learned, "
                f"and a split of it may hold training samples: expected the run's options "
                f"({run.data_options or 'none'}), files and versions"
                f"{', as many ranks' * run.data_local}, or a data set of another name"
            )
        return _Trained(weights, step, model, loaded.dataset, _split(loaded.dataset, data, config.split))

    return on_every_rank(comm, trained)


def _split(dataset: Dataset, data: str, name: str) -> Split:
    splits = dataset.splits()
    if name not in splits:
        raise TrainerError(
            f"data {data!r} has no {name} split with these options; it has {', '.join(splits)}"
        )
    return splits[name]


def _predictions(trained: _Trained, comm: Communicator) -> Tensor:
    """Of this rank's samples, which may be none."""
    model, task = trained.model, trained.dataset.task
    outputs = forwards(model, task, trained.split, comm.rank, comm.size)
    parts = [task.predict(output) for output, _ in outputs]
    if parts:
        return torch.cat(parts)
    model.eval()
    with torch.no_grad():  # of the first sample, for shape and dtype
        return task.predict(model(readable(trained.split).first()[0]))[:0]


def _gather(mine: Tensor, counts: list[int], comm: Communicator) -> list[Tensor]:
    """All ranks' rows on rank 0, by rank; nothing elsewhere. Ranks without samples send nothing."""
    if comm.rank:
        if len(mine):
            comm.send(mine.contiguous(), 0)
        return []
    rows = [mine]
    for peer in range(1, comm.size):
        theirs = mine.new_empty((counts[peer], *mine.shape[1:]))
        rows.append(comm.recv(theirs, peer) if counts[peer] else theirs)
    return rows


def _write(path: Path, predictions: Tensor) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, predictions.numpy())
