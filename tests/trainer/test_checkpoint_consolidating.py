"""One file of weights from a checkpoint: what safetensors reads is what the run had, to the bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pycomm.testing import run_threads
from trainer import MODELS, FitConfig, TrainerError, fit
from trainer.checkpoint.consolidating import consolidate
from trainer.weights import load_weights


class Mixed(nn.Module):
    """A shared parameter, other dtypes and lengths that fit no alignment."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1, 3)
        self.again = nn.Linear(1, 3)
        self.again.weight = self.first.weight
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("halves", torch.arange(5, dtype=torch.bfloat16))
        self.register_buffer("count", torch.tensor(7))
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.25)

    def forward(self, x: Tensor) -> Tensor:
        return (self.first(x) + self.again(x)).sum(1, keepdim=True)


@MODELS.register("test_mixed")
def mixed(inputs: int, outputs: int) -> nn.Module:
    return Mixed()


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_file_is_the_model(size: int, tmp_path: Path) -> None:
    config = FitConfig(
        data="linear", model="test_mixed", lr=0.01, steps=4, save_every=2, threads=1, out=tmp_path / "run"
    )
    run_threads(size, lambda comm: fit(config, comm))
    assert consolidate(tmp_path / "run" / "checkpoints" / "step-000004", tmp_path / "out.safetensors") == 4
    got, expected = load_file(tmp_path / "out.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    assert got.keys() == expected.keys()
    assert {"first.weight", "again.weight"} <= got.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor)
    with (
        safe_open(tmp_path / "out.safetensors", "pt") as out,
        safe_open(tmp_path / "run" / "model.safetensors", "pt") as weights,
    ):
        assert out.metadata() == weights.metadata()
    model = Mixed()
    assert load_weights(tmp_path / "out.safetensors", model) == 4


def test_the_command_writes_it_and_predict_takes_it(tmp_path: Path, environment: dict[str, str]) -> None:
    config = FitConfig(data="linear", model="linear", steps=4, save_every=2, threads=1, out=tmp_path / "run")
    run_threads(2, lambda comm: fit(config, comm))

    def trainer(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "trainer", *arguments],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    done = trainer("consolidate", "run/checkpoints/step-000002", "run/early.safetensors")
    assert (done.returncode, done.stdout) == (0, "run/early.safetensors: the model after step 2\n")
    predicted = trainer("predict", "--weights", "run/early.safetensors")
    assert "200 predictions for split test, by run/early.safetensors after step 2" in predicted.stdout
    refused = trainer("consolidate", "run", "out.safetensors")
    assert refused.returncode == 2
    assert "run/index.json does not exist: expected the folder of a checkpoint" in refused.stderr
    assert not (tmp_path / "out.safetensors").exists()


def test_a_checkpoint_with_a_wrong_byte_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    config = FitConfig(data="linear", model="linear", steps=2, save_every=2, threads=1, out=tmp_path / "run")
    run_threads(2, lambda comm: fit(config, comm))
    folder = tmp_path / "run" / "checkpoints" / "step-000002"
    content = bytearray((folder / "part-1.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "part-1.safetensors").write_bytes(content)
    with pytest.raises(TrainerError, match=r"part-1.safetensors is damaged: expected sha256"):
        consolidate(folder, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
