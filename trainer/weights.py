"""A model's `state_dict` as one safetensors file, by name. The number of ranks appears nowhere.

Every name has its tensor, so that `model.load_state_dict(safetensors.torch.load_file(path))` takes the file
anywhere; a parameter that is used in several places is stored under each of its names. The header says after
which step the weights are, on which data they were trained, and their hash, so that a file that was altered,
or belongs to another model, is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.errors import TrainerError
from trainer.files import replacing
from trainer.state import hash_of, tensors_sha256
from trainer.tensor_file import file_order, has_name, write_stream

Whole = Callable[[Sequence[tuple[str, Tensor]]], Iterable[tuple[str, Tensor]]]

# Their names in a run's folder: after the last step, at the lowest validation loss, before a failure.
FINAL, BEST, LAST_GOOD = "model.safetensors", "best.safetensors", "last_good.safetensors"


def save_weights(
    path: Path,
    model: nn.Module,
    step: int,
    data_sha256: str = "",
    *,
    whole: Whole = lambda named: named,
    write: bool = True,
) -> None:
    """Writes `path`; an earlier file of that name stays until the new one is on the disk.

    `whole`: makes the model's tensors whole, one after another; where that takes all ranks, all call this,
    and those that do not `write` only take part. Raises TrainerError if it cannot be written.
    """
    state = _state(model)
    kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
    if not write:
        for order in (sorted(state), file_order(kinds)):
            deque(whole([(name, state[name]) for name in order]), 0)
        return
    header = {"format": "pt", "step": str(step), "data_sha256": data_sha256}
    header["state_sha256"] = hash_of(whole([(name, state[name]) for name in sorted(state)]))
    tensors = iter(whole([(name, state[name]) for name in file_order(kinds)]))
    try:
        with replacing(path) as partial, partial.open("wb") as file:
            write_stream(file, kinds, tensors, header)
    finally:
        deque(tensors, 0)


def check_storable(model: nn.Module) -> None:
    """Raises TrainerError for a model that could not be written when it is trained."""
    _state(model)


def write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> None:
    """A safetensors file of contiguous tensors, with the permissions of any other file. Raises OSError."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, header)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)  # safetensors makes files that only their owner can read


def load_weights(path: Path, model: nn.Module) -> int:
    """Overwrites the model's parameters and buffers; returns after which step they were saved.

    Raises TrainerError for a file that is missing, damaged or of another model; the model may then have
    some of its tensors.
    """
    with _opened(path) as (file, header):
        _fill(_state(model), {name: file.get_tensor(name) for name in file.keys()}, path)  # noqa: SIM118
    if header["state_sha256"] != tensors_sha256(_state(model)):
        raise TrainerError(f"{path} is damaged: its tensors have another hash than when they were written")
    return int(header["step"])


def trained_on(path: Path) -> str:
    """The hash of the data that the weights were trained on. Raises TrainerError as load_weights() does."""
    with _opened(path) as (_, header):
        return header["data_sha256"]


def finite(model: nn.Module, whole: Whole = lambda named: named) -> bool:
    """Whether all parameters are finite numbers. Buffers need not be: a causal mask holds -inf. `whole`: as
    for save_weights()."""
    state = _state(model)  # parameters that may be read: its hooks wait for those on their way
    named = [(name, state[name]) for name, _ in model.named_parameters() if name in state]
    sound = [bool(tensor.isfinite().all()) for _, tensor in whole(named)]  # not up to the first: others wait
    return all(sound)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[safe_open, dict[str, str]]]:
    """The file and its header."""
    if not path.is_file():
        raise TrainerError(f"{path} does not exist: expected weights that fit has written")
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if not header.keys() >= {"step", "data_sha256", "state_sha256"}:
                raise TrainerError(f"{path} was not written by fit: its header names no step and no hash")
            yield file, header
    except SafetensorError as error:
        raise TrainerError(f"{path} is damaged: {error}") from error


def _state(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict(keep_vars=True)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TrainerError(f"weights are tensors: the model's state has {name} of {type(value).__name__}")
        if not has_name(value.dtype):
            raise TrainerError(f"weights are safetensors, which have no {value.dtype}, the dtype of {name}")
    return state


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
