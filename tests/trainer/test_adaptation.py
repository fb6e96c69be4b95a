"""--compile: the model's forward compiled, the hooks of strategies as before."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pycomm.testing import run_threads
from trainer import FitConfig, TrainerError, fit
from trainer.rows import read_rows


def config(out: Path, **options: object) -> FitConfig:
    settings = {"global_batch": 10, "steps": 5, "lr": 0.01, **options}
    return FitConfig(
        data="linear", model="mlp", model_options={"hidden": [9]}, out=out, threads=1, **settings
    )


def test_without_a_compiler_it_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TrainerError, match=r"compile: .* there is no no-such-compiler .*CXX names another"):
        run_threads(2, lambda comm: fit(config(tmp_path, compile=True), comm))
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("strategy", "ranks"),
    [("single", 1), ("data_parallel", 2), ("zero2", 2)],
)
def test_a_compiled_model_trains_as_without(
    strategy: str, ranks: int, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Processes, since ranks as threads would compile at the same time; micro-batches of two sizes."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("torch.compile needs a C++ compiler")
    losses = []
    for extra in ([], ["--compile", "true"]):
        out = tmp_path / str(bool(extra))
        arguments = [
            "fit", "--data", "linear", "--model", "mlp", "--model_options.hidden", "9",
            "--global_batch", "10", "--strategy", strategy, "--steps", "5", "--lr", "0.01", "--threads", "1",
            "--accumulate", "2", "--out", str(out), *extra,
        ]  # fmt: skip
        command = [sys.executable, "-m", "pycomm.launch", "-n", str(ranks), "-m", "trainer", *arguments]
        compiled = tmp_path / "compiled"
        finished = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False,
            env={**environment, "TORCHINDUCTOR_CACHE_DIR": str(compiled)},
        )  # fmt: skip
        assert finished.returncode == 0, finished.stdout + finished.stderr
        assert bool(list(compiled.rglob("*.so"))) == bool(extra)
        losses.append([row["loss"] for row in read_rows(out / "metrics.jsonl")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
