"""The program as a user meets it: arguments, files, and how it ends when something goes wrong."""

from __future__ import annotations

import json
import os
import signal as signals
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

SUMMARY_KEYS = {
    "strategy", "world_size", "steps", "ended", "best", "params", "loss_first", "loss_last", "validation",
    "eval", "step_ms_median", "samples_per_s", "exposed_comm_ms_median", "param_sha256", "data_sha256",
    "transport", "codec", "shards", "precision", "skipped_steps", "versions", "memory", "peak_rss_bytes",
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
        (["fit", "--steps", "10", "--warmup_steps", "10"], ["warmup_steps: expected 0 to 9"]),
        (["fit", "--eval_every", "5", "--patience", "2"], ["patience needs a validation split"]),
        (["fit", "--plugin", "no_such_module"], ["plugin 'no_such_module'"]),
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
    arguments = [*LINEAR, "--plugin", "raising_plugin", "--model", "raises", "--out", str(tmp_path / "run")]
    finished = trainer(arguments, ranks=2, path=tmp_path)
    ended = time.time()
    assert finished.returncode != 0
    assert "[rank 1] ValueError: the third forward" in finished.stderr
    assert "[rank 1] Traceback (most recent call last):" in finished.stderr
    raised = next(line for line in finished.stdout.splitlines() if line.startswith("raising at"))
    assert ended - float(raised.split()[-1]) < 5
    assert not (tmp_path / "run" / "summary.json").exists()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_refusal_after_the_start_is_one_line_without_a_traceback(trainer: Run, tmp_path: Path) -> None:
    finished = trainer([*LINEAR, "--epochs", "1", "--warmup_steps", "9", "--out", str(tmp_path / "run")])
    assert finished.returncode == 1
    said = (
        "[rank 0] trainer.errors.CollectiveError: warmup_steps: expected 0 to 6, less than the run's, got 9\n"
    )
    assert finished.stderr == said
    assert not (tmp_path / "run").exists()


INTERRUPTED = """
import os, signal
from torch import nn
from trainer.models import MODELS

class Interrupted(nn.Linear):
    forwards = 0

    def forward(self, x):
        self.forwards += 1
        if self.forwards == 3:
            os.kill(os.getpid(), signal.{signal})
        return super().forward(x)

@MODELS.register("interrupted")
def interrupted(inputs=1, outputs=1):
    return Interrupted(1, 1)
"""


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_an_interruption_is_one_line_and_keeps_the_last_good_weights(
    signal: str, trainer: Run, tmp_path: Path
) -> None:
    (tmp_path / "interrupted.py").write_text(INTERRUPTED.format(signal=signal))
    run = tmp_path / "run"
    arguments = [*LINEAR, "--plugin", "interrupted", "--model", "interrupted", "--out", str(run)]
    finished = trainer(arguments, path=tmp_path)
    assert finished.returncode == 130
    kept = f"interrupted in step 3; {run}/last_good.safetensors has the parameters after step 2"
    assert finished.stderr.splitlines()[-1] == f"[rank 0] {kept}"
    assert "Traceback" not in finished.stderr
    assert load_weights(run / "last_good.safetensors", torch.nn.Linear(1, 1)) == 2


@pytest.mark.long
def test_what_mpirun_passes_on_as_sigusr1_lets_the_ranks_say_how_they_ended(
    environment: dict[str, str], tmp_path: Path
) -> None:
    options = ["--steps", "1000000", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "pycomm.launch", "-n", "2", "-m", "trainer", *LINEAR, *options]
    job = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").stat().st_size:
        assert time.monotonic() < end and job.poll() is None
        time.sleep(0.1)
    job.send_signal(signals.SIGUSR1)  # pycomm.launch has become mpirun
    _, said = job.communicate(timeout=60)
    assert job.returncode == 130, said
    assert "[rank 0] interrupted in" in said and "Traceback" not in said


def test_what_fit_leaves_predicts_over_mpi(trainer: Run, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "p.npy"
    config = FitConfig(data="linear", model="linear", optimizer="sgd", lr=0.01, epochs=2, out=run, threads=1)
    run_threads(3, lambda comm: fit(config, comm))
    predicted = trainer(["predict", "--weights", str(run), "--data", "linear", "--out", str(out)], ranks=2)
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
