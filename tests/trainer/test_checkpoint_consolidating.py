"""One file of weights from a checkpoint: what safetensors reads is what the run had, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pycomm.testing import run_threads
from trainer import MODELS, FitConfig, PredictConfig, TrainerError, fit, predict
from trainer.__main__ import main
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


def test_the_command_writes_it_and_predict_takes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    config = FitConfig(data="linear", model="linear", steps=4, save_every=2, threads=1, out=run)
    run_threads(2, lambda comm: fit(config, comm))
    capsys.readouterr()
    main(["consolidate", str(run / "checkpoints" / "step-000002"), str(run / "early.safetensors")])
    assert capsys.readouterr().out == f"{run}/early.safetensors: the model after step 2\n"
    predicting = PredictConfig(run / "early.safetensors", out=tmp_path / "predictions.npy", threads=1)
    done = run_threads(2, lambda comm: predict(predicting, comm))[0]
    assert (done["step"], done["count"]) == (2, 200)


def test_the_command_refuses_what_is_no_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["consolidate", str(tmp_path), str(tmp_path / "out.safetensors")])
    assert ended.value.code == 2
    assert f"{tmp_path}/index.json does not exist: expected the folder of a" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


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
