"""128-64-32-10 on randn(100, 128) with random labels, batch 128: each step takes all 100 samples."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import tests.seeds.random_labels  # noqa: F401
from pycomm.testing import run_threads
from tests.helpers import run
from tests.seeds.table import Table
from tests.seeds.training import Training, on_ranks, rows_of
from trainer import DATA, MODELS, FitConfig, fit

FIT = (
    "fit --plugin [tests.seeds.random_labels] --data random_labels --data_options.count 100"
    " --data_options.inputs 128 --data_options.classes 10 --model mlp --model_options.hidden [64,32]"
    " --global_batch 128 --optimizer sgd --lr 0.01 --epochs 5 --threads 1"
)


def test_every_step_takes_all_samples(tmp_path: Path, table: Table) -> None:
    ended = run(2, "-m", "trainer", *FIT.split(), "--out", str(tmp_path / "two"), limit_s=90)
    assert ended.status == 0, ended
    summary, rows = json.loads((tmp_path / "two" / "summary.json").read_text()), rows_of(tmp_path / "two")
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

    batch = re.search(r"global batch \d+ \(.*?\)", ended.stdout)
    assert batch, ended
    table.equal("printed", "global batch 100 (50 per rank)", batch[0], ranks=2)
    table.equal("steps", 5, summary["steps"], ranks=2)
    table.equal("samples in each step", {100}, {row["samples"] for row in rows}, ranks=2)
    table.equal("parameters", 10_666, summary["params"], ranks=2)
    table.at_most("losses beside one process", 1e-5, off, ranks=2)
    after = abs(summary["eval"]["loss"] - alone["eval"]["loss"]) / alone["eval"]["loss"]
    table.at_most("loss in the end, beside one process", 1e-5, after, ranks=2)


def test_adam_memorises_all_samples(table: Table) -> None:
    inputs, labels = DATA.build("random_labels", seed=0).train
    torch.manual_seed(4)
    model = MODELS.build("mlp", inputs=128, outputs=10, hidden=[64, 32])
    loss = partial(functional.cross_entropy, reduction="sum")
    optimizer = partial(torch.optim.Adam, lr=0.01)
    training = Training(inputs, labels, model, loss, optimizer, global_batch=128, steps=60)
    nn.utils.vector_to_parameters(on_ranks(training, 2)[0].parameters[-1], model.parameters())
    known = (model(inputs).argmax(1) == labels).sum().item()
    table.equal("samples that Adam memorises", 100, known, ranks=2)
