"""Normal inputs with labels drawn at random: nothing to learn but the samples themselves."""

from __future__ import annotations

import torch

from trainer.data import CLASSIFICATION, DATA, Dataset


@DATA.register("random_labels")
def random_labels(seed: int, count: int = 100, inputs: int = 128, classes: int = 10) -> Dataset:
    """`count` training samples, which are the test samples too: what is asked is how many are memorised."""
    random = torch.Generator().manual_seed(seed)
    samples = torch.randn(count, inputs, generator=random), torch.randint(classes, (count,), generator=random)
    return Dataset(samples, samples, CLASSIFICATION, {"inputs": inputs, "outputs": classes})
