"""128-64-32-10 on randn(100, 128) with random labels, batch 128: each step takes all 100 samples."""

from __future__ import annotations

import json
from pathlib import Path

import tests.seeds.random_labels  # noqa: F401
from pycomm.testing import run_threads
from tests.helpers import Outcome, run
from trainer import FitConfig, fit

FIT = (
    "fit --plugin [tests.seeds.random_labels] --data random_labels --data_options.count 100"
    " --data_options.inputs 128 --data_options.classes 10 --model mlp --model_options.hidden [64,32]"
    " --global_batch 128 --threads 1"
)


def over_mpi(out: Path, arguments: str) -> tuple[Outcome, dict, list[dict]]:
    ended = run(2, "-m", "trainer", *FIT.split(), *arguments.split(), "--out", str(out), limit_s=50)
    assert ended.status == 0, ended
    return ended, json.loads((out / "summary.json").read_text()), rows_of(out)


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_every_step_takes_all_samples(tmp_path: Path, table) -> None:
    ended, summary, rows = over_mpi(tmp_path / "two", "--optimizer sgd --lr 0.01 --epochs 5")
    config = FitConfig(
        data="random_labels",
        data_options={"count": 100, "inputs": 128, "classes": 10},
        model_options={"hidden": [64, 32]},
        global_batch=128,
        optimizer="sgd",
        lr=0.01,
        epochs=5,
        threads=1,
        out=tmp_path / "one",
    )
    alone = run_threads(1, lambda comm: fit(config, comm))[0]
    losses, expected = ([row["loss"] for row in each] for each in (rows, rows_of(tmp_path / "one")))
    off = max(abs(have - want) / want for have, want in zip(losses, expected, strict=True))

    table.equal("samples of each rank", True, "global batch 100 (50 per rank)" in ended.stdout, ranks=2)
    table.equal("steps", 5, summary["steps"], ranks=2)
    table.equal("samples in each step", {100}, {row["samples"] for row in rows}, ranks=2)
    table.equal("parameters", 10_666, summary["params"], ranks=2)
    table.at_most("losses beside one process", 1e-5, off, ranks=2)
    after = abs(summary["eval"]["loss"] - alone["eval"]["loss"]) / alone["eval"]["loss"]
    table.at_most("loss in the end, beside one process", 1e-5, after, ranks=2)


def test_adam_memorises_all_samples(tmp_path: Path, table) -> None:
    _, summary, _ = over_mpi(tmp_path, "--optimizer adam --lr 0.01 --epochs 60")
    table.equal("samples that Adam memorises", 100, round(100 * summary["eval"]["accuracy"]), ranks=2)
