"""1,797 digits of 8x8 pixels (Alpaydin and Kaynak, 1998): the data of scikit-learn's `load_digits`.

The file inside the wheel is read, and scikit-learn is not imported, so that it need not bring scipy, joblib
and threadpoolctl along for 57 KB: `--no-deps` is enough, and a whole installation does as well.
"""

from __future__ import annotations

from trainer.data import DATA, Dataset
from trainer.images import labelled_images, wheel_file


@DATA.register("digits")
def digits(seed: int, test_fraction: float = 0.2, validation_fraction: float = 0.0) -> Dataset:
    path = wheel_file("digits", "sklearn", "datasets/data/digits.csv.gz")
    return labelled_images(path, (1, 8, 8), seed, test_fraction, validation_fraction)
