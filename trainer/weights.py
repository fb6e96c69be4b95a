"""A model's parameters and buffers as one safetensors file, by name. The number of ranks appears nowhere.

A parameter that is used in several places is stored once. The header says after which step the weights are,
and their hash, so that a file that was altered, or belongs to another model, is refused.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.errors import TrainerError
from trainer.files import replacing
from trainer.state import state_sha256

FINAL, LAST_GOOD = "model.safetensors", "last_good.safetensors"  # their names in a run's folder


def save_weights(path: Path, model: nn.Module, step: int) -> None:
    """Writes `path`; an earlier file of that name stays until the new one is on the disk. One rank calls it.

    Raises TrainerError if it cannot be written.
    """
    tensors = {name: tensor.contiguous() for name, tensor in _state(model).items()}
    header = {"format": "pt", "step": str(step), "state_sha256": state_sha256(model)}
    with replacing(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file(tensors, partial, header)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        partial.chmod(mode)  # safetensors makes files that only their owner can read


def load_weights(path: Path, model: nn.Module) -> int:
    """Overwrites the model's parameters and buffers; returns after which step they were saved.

    Raises TrainerError for a file that is missing, damaged or of another model; the model may then have
    some of its tensors.
    """
    if not path.is_file():
        raise TrainerError(f"{path} does not exist: expected weights that fit has written")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if not header.keys() >= {"step", "state_sha256"}:
                raise TrainerError(f"{path} was not written by fit: its header names no step and no hash")
            _fill(_state(model), {name: file.get_tensor(name) for name in file.keys()}, path)  # noqa: SIM118
    except SafetensorError as error:
        raise TrainerError(f"{path} is damaged: {error}") from error
    if header["state_sha256"] != state_sha256(model):
        raise TrainerError(f"{path} is damaged: its tensors have another hash than when they were written")
    return int(header["step"])


def finite(model: nn.Module) -> bool:
    """Whether all parameters and buffers are finite numbers."""
    return all(bool(tensor.isfinite().all()) for tensor in _state(model).values())


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


def _fill(state: dict[str, Tensor], stored: dict[str, Tensor], path: Path) -> None:
    expected, got = ({name: _kind(tensor) for name, tensor in part.items()} for part in (state, stored))
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise TrainerError(
                f"{path} is of another model: expected {name} as {expected.get(name, 'nothing')}, "
                f"got {got.get(name, 'nothing')}"
            )
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(stored[name])


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"
