"""For tests of exact mode: runs of `fit`, and what of them must not depend on ranks and strategy: everything
but times and names.

    python -m pycomm.launch -n 4 -m tests.trainer.exact_runs FOLDER zero1     # a run of each model
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

import pycomm
from pycomm.testing import run_threads
from trainer import DATA, Dataset, FitConfig, fit
from trainer.data import CLASSIFICATION
from trainer.state import bits

TIMES = {"step_ms", "exposed_comm_ms"}
RESULTS = ("param_sha256", "steps", "ended", "best", "loss_first", "loss_last", "validation", "eval")
SIZES = (1, 2, 4, 8)
STRATEGIES = ("data_parallel", "zero1", "zero2")
# Batches that the shards do not divide, the last of an epoch smaller than their number, buckets smaller than
# the model, parameters longer than a block and of lengths that no register's width divides.
COMMON: dict[str, Any] = {
    "exact": True, "steps": 6, "global_batch": 37, "clip_norm": 0.5, "eval_every": 2, "bucket_mb": 0.02,
    "seed": 3,
}  # fmt: skip
IMAGES = {"data": "test_exact_images", **COMMON}
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {**IMAGES, "model": "mlp", "model_options": {"hidden": [83, 17], "dropout": 0.2}},
    "cnn": {**IMAGES, "model": "cnn", "model_options": {"width": 5, "dropout": 0.3}},
    "gpt": {
        **COMMON, "data": "pytext", "model": "gpt",
        "data_options": {"length": 11, "limit_bytes": 20_000, "validation_fraction": 0.1},
        "model_options": {"width": 36, "heads": 2, "layers": 2, "dropout": 0.1},
    },
}  # fmt: skip

if "test_exact_images" not in DATA.names():

    @DATA.register("test_exact_images")
    def images(seed: int, count: int = 113) -> Dataset:
        """The class is the brightest of three stripes."""
        x = torch.rand(count + 101, 1, 9, 9, generator=torch.Generator().manual_seed(seed))
        y = x.view(-1, 3, 27).sum(2).argmax(1)
        train, validation, test = (
            (x[part], y[part]) for part in (slice(count), slice(count, -50), slice(-50, None))
        )
        return Dataset(train, test, CLASSIFICATION, {"inputs": (1, 9, 9), "outputs": 3}, validation)


def outcome(out: Path) -> dict[str, Any]:
    """What a run has left in its folder."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((out / "summary.json").read_text())
    return {
        "rows": [{name: value for name, value in row.items() if name not in TIMES} for row in rows],
        **{name: summary[name] for name in RESULTS},
        **{path.name: _weights(path) for path in out.glob("*.safetensors")},
    }


def _weights(path: Path) -> dict[str, Any]:
    """Header and bits; the library writes the header's entries in any order."""
    with safe_open(path, "pt") as file:
        return {**file.metadata(), **{name: bits(file.get_tensor(name)).tobytes() for name in file.keys()}}  # noqa: SIM118


def train(size: int, out: Path, strategy: str = "data_parallel", **options: Any) -> dict[str, Any]:
    """On ranks that are threads."""
    config = FitConfig(**{**options, "strategy": strategy, "out": out})
    run_threads(size, lambda comm: fit(config, comm))
    return outcome(out)


def main(folder: str, strategy: str) -> None:
    comm = pycomm.init()
    for name, options in MODELS.items():
        fit(FitConfig(**{**options, "strategy": strategy, "out": Path(folder) / name}), comm)


if __name__ == "__main__":
    main(*sys.argv[1:])
