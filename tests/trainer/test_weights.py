from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pycomm.testing import run_threads
from tests.helpers import files_of
from trainer import FitConfig, fit
from trainer.errors import TrainerError
from trainer.weights import check_storable, finite, load_weights, save_weights, trained_on


class Tied(nn.Module):
    """A parameter in two places, one that is not contiguous, buffers, and one that is not in the state."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.turned = nn.Parameter(torch.randn(2, 5).t())
        self.norm = nn.BatchNorm1d(3)
        self.norm.running_mean.normal_()
        self.register_buffer("mask", torch.tensor([0, -torch.inf]), persistent=False)


def test_what_is_saved_is_loaded_to_the_bit(tmp_path: Path) -> None:
    saved, loaded = Tied(0), Tied(1)
    save_weights(tmp_path / "w.safetensors", saved, step=7)
    assert load_weights(tmp_path / "w.safetensors", loaded) == 7
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert loaded.second.weight is loaded.first.weight


def test_torch_alone_loads_the_file_into_the_model(tmp_path: Path) -> None:
    saved, loaded = Tied(0), Tied(1)
    save_weights(tmp_path / "w.safetensors", saved, step=1)
    loaded.load_state_dict(load_file(tmp_path / "w.safetensors"))
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert loaded.second.weight is loaded.first.weight


def test_a_buffer_that_is_no_state_is_left_as_it_is(tmp_path: Path) -> None:
    saved, loaded = Tied(0), Tied(1)
    loaded.mask.fill_(7)
    save_weights(tmp_path / "w.safetensors", saved, step=1)
    load_weights(tmp_path / "w.safetensors", loaded)
    assert loaded.mask.tolist() == [7, 7]
    assert finite(saved)


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> int:
            return 3

    model = Extra(1, 1)
    with pytest.raises(TrainerError, match=r"weights are tensors: the model's state has _extra_state of int"):
        save_weights(tmp_path / "w.safetensors", model, step=1)


def test_what_safetensors_cannot_hold_is_refused_before_training(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    model.register_buffer("angles", torch.ones(2, dtype=torch.complex64))
    check_storable(model)
    save_weights(tmp_path / "w.safetensors", model, step=1)
    assert torch.equal(load_file(tmp_path / "w.safetensors")["angles"], model.angles)
    model.angles = model.angles.to(torch.complex128)
    with pytest.raises(TrainerError, match=r"no torch.complex128, the dtype of angles"):
        check_storable(model)
    config = FitConfig(data="linear", model="tests.trainer.test_weights:Doubled", out=tmp_path / "run")
    with pytest.raises(TrainerError, match=r"no torch.complex128, the dtype of angles"):
        run_threads(1, lambda comm: fit(config, comm))
    assert not (tmp_path / "run").exists()


class Doubled(nn.Linear):
    def __init__(self) -> None:
        super().__init__(1, 1)
        self.register_buffer("angles", torch.ones(2, dtype=torch.complex128))


def test_the_file_says_what_it_was_trained_on(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", nn.Linear(3, 3), step=1, data_sha256="abc")
    assert trained_on(tmp_path / "w.safetensors") == "abc"


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(3, 2), r"expected bias as torch.float32 \(2,\), got torch.float32 \(3,\)"),
        (nn.Linear(3, 3, bias=False), r"expected bias as nothing, got torch.float32 \(3,\)"),
        (nn.Linear(3, 3).double(), r"expected bias as torch.float64 \(3,\), got torch.float32 \(3,\)"),
        (nn.Sequential(nn.Linear(3, 3)), r"expected 0.bias as .*, got nothing"),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path: Path, other: nn.Module, message: str) -> None:
    save_weights(tmp_path / "w.safetensors", nn.Linear(3, 3), step=1)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(TrainerError, match=f"w.safetensors is of another model: {message}"):
        load_weights(tmp_path / "w.safetensors", other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_file_that_changed_or_is_torn_or_missing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(TrainerError, match=r"w.safetensors does not exist"):
        load_weights(path, nn.Linear(3, 3))
    save_weights(path, nn.Linear(3, 3), step=1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(TrainerError, match=r"w.safetensors is damaged: its tensors have another hash"):
        load_weights(path, nn.Linear(3, 3))
    path.write_bytes(whole[:-1])
    with pytest.raises(TrainerError, match=r"w.safetensors is damaged"):
        load_weights(path, nn.Linear(3, 3))


def test_weights_of_another_program_are_refused(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(TrainerError, match="was not written by fit"):
        load_weights(tmp_path / "w.safetensors", model)


def test_weights_without_room_leave_the_earlier_ones(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, nn.Linear(3, 3), step=1)
    before = path.read_bytes()
    with files_of(4096), pytest.raises(TrainerError, match=r"cannot write .*w.safetensors: .*File too large"):
        save_weights(path, nn.Linear(300, 300), step=2)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_weights_can_be_read_by_whom_other_files_can(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save_weights(tmp_path / "w.safetensors", nn.Linear(3, 3), step=1)
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_finite_looks_at_parameters_and_not_at_buffers() -> None:
    model = nn.BatchNorm1d(3)
    model.running_mean[1] = -torch.inf
    assert finite(model)
    model.weight.data[2] = torch.nan
    assert not finite(model)
