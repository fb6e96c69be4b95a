"""Predictions of a trained model over all ranks: every sample once, in order, at any number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pycomm import Communicator
from trainer.config import CONFIG_FILE, PredictConfig, read_config
from trainer.data import Dataset, Split
from trainer.errors import TrainerError
from trainer.evaluate import forwards, share
from trainer.files import on_every_rank, on_rank_0, replacing
from trainer.preparation import build_dataset, build_model
from trainer.state import data_sha256
from trainer.weights import FINAL, load_weights, trained_on


def predict(config: PredictConfig, comm: Communicator) -> dict[str, Any]:
    """Writes config.out, an array whose row i is the prediction for sample i; returns what it holds.

    What a prediction is, the data set's task says: a class for images, the next byte at each position for
    text, the output itself for regression. Model, seed and options come from the run. Every rank computes
    part `rank` of numpy.array_split(samples, size), and rank 0 writes. Collective, blocks.
    """
    on_every_rank(comm, config.check)
    torch.set_num_threads(config.threads or max(1, comm.cores))
    trained = on_every_rank(comm, lambda: _load(config))
    task, split = trained.dataset.task, trained.split
    mine = share(len(split[0]), comm.rank, comm.size)
    parts = [task.predict(outputs) for outputs, _ in forwards(trained.model, task, split, mine)]
    predictions = _gather(torch.cat(parts) if parts else None, len(split[0]), comm)
    on_rank_0(comm, lambda: _write(config.out, predictions))
    return {"weights": trained.weights, "step": trained.step, "count": len(split[0])}


@dataclass
class _Trained:
    weights: Path
    step: int
    model: nn.Module
    dataset: Dataset
    split: Split


def _load(config: PredictConfig) -> _Trained:
    weights = config.weights / FINAL if config.weights.is_dir() else config.weights
    run = read_config(weights.parent / CONFIG_FILE)
    run.check()
    data = config.data or run.data
    own = data == run.data
    options = {**(run.data_options if own else {}), **config.data_options}
    dataset = build_dataset(data, run.seed, options)
    model = build_model(run, dataset)
    step = load_weights(weights, model)
    if own and data_sha256(dataset) != trained_on(weights):
        raise TrainerError(
            f"data {data!r} with {options or 'no options'} is not, bit for bit, what {weights} learned, "
            f"and a split of it may hold training samples: expected the run's options "
            f"({run.data_options or 'none'}), files and versions, or a data set of another name"
        )
    return _Trained(weights, step, model, dataset, _split(dataset, data, config.split))


def _split(dataset: Dataset, data: str, name: str) -> Split:
    splits = dataset.splits()
    if name not in splits:
        raise TrainerError(
            f"data {data!r} has no {name} split with these options; it has {', '.join(splits)}"
        )
    return splits[name]


def _gather(mine: Tensor | None, count: int, comm: Communicator) -> Tensor | None:
    """All ranks' rows on rank 0, in order of rank; None elsewhere. Ranks without samples send nothing."""
    if comm.rank:
        if mine is not None:
            comm.send(mine.contiguous(), 0)
        return None
    assert mine is not None  # the first parts are the larger ones, and a split is never empty
    rows = mine.new_empty((count, *mine.shape[1:]))
    rows[: len(mine)] = mine
    for peer in range(1, comm.size):
        theirs = share(count, peer, comm.size)
        if len(theirs):
            rows[theirs] = comm.recv(rows[theirs].contiguous(), peer)
    return rows


def _write(path: Path, predictions: Tensor | None) -> None:
    assert predictions is not None
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, predictions.numpy())
