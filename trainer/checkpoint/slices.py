"""What a checkpoint holds, in terms of the model alone: named tensors, cut into slices of their flat index.

Names are `model.NAME` for a parameter or persistent buffer (a parameter used in several places has the first
of its names), `optimizer.NAME.KEY` for what an optimizer keeps about the parameter NAME under KEY (of a
16-bit one `master`, its float32 copy), and `strategy.…` for what belongs to a strategy alone, such as a
codec's residuals: another strategy does not ask for it. Ranks and their number appear in no name and no
shape. So a strategy says which slices it holds, and takes those it needs, however the ones in the file were
cut.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainer.errors import TrainerError
from trainer.master_weights import KEY as MASTER

MODEL, OPTIMIZER = "model.", "optimizer."
Stepped = Callable[[nn.Parameter], nn.Parameter]  # from a parameter to its master, or itself


@dataclass(frozen=True)
class Slice:
    """Elements `offset` to `offset + len(data)` of tensor `name`, which as a whole has `shape`.

    `data` is one-dimensional, contiguous, and may be a view of what is in use: it is copied at once.
    A number, such as Adam's `step`, is a tensor of shape () with the one slice at 0. `buffer`: it is the
    model's, and no parameter, so that it need not be finite: a causal mask holds -inf.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    data: Tensor
    buffer: bool = False


class SliceReader(Protocol):
    """A checkpoint that is being loaded. Reading is local; what is asked for, and no more, is read."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> torch.dtype: ...

    def states(self, parameter: str) -> list[str]:
        """The keys KEY of `optimizer.PARAMETER.KEY`; none where the optimizer has not yet stepped it."""
        ...

    def read(self, name: str, out: Tensor, offset: int = 0) -> None:
        """Fills `out`, one-dimensional and contiguous, with the elements from `offset` on."""
        ...


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by the names they have in a checkpoint, each once."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise TrainerError(
                f"checkpoints hold tensors: the model's state has {name} of {type(tensor).__name__}"
            )
        if id(tensor) not in seen:
            tensors[MODEL + name] = tensor.detach()
        seen.add(id(tensor))
    return tensors


def itself(parameter: nn.Parameter) -> nn.Parameter:
    """What an optimizer without master weights steps on."""
    return parameter


def optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, stepped: Stepped = itself
) -> dict[str, Tensor]:
    """What the optimizer keeps about each parameter, by name. Raises TrainerError for what is no tensor."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters(model).items():
        master = stepped(parameter)
        if master is not parameter:
            tensors[f"{OPTIMIZER}{name}.{MASTER}"] = master.detach()
        for key, value in optimizer.state.get(master, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{OPTIMIZER}{name}.{key}"] = value.detach()
            elif value is not None:
                raise TrainerError(
                    f"checkpoints hold tensors: {type(optimizer).__name__} keeps {key} of {name} as "
                    f"{type(value).__name__}"
                )
    return tensors


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By the name each has in a checkpoint."""
    return dict(model.named_parameters())


def buffers(model: nn.Module) -> set[str]:
    """The names that they have among model_tensors()."""
    return {MODEL + name for name, _ in model.named_buffers(remove_duplicate=False)}


def replicated_slices(
    model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, size: int, stepped: Stepped = itself
) -> Iterator[Slice]:
    """For strategies whose ranks all hold everything: one part in `size`, so that they write side by side."""
    tensors = {**model_tensors(model), **optimizer_tensors(model, optimizer, stepped)}
    yield from share(tensors, rank, size, buffers(model))


def load_replicated(
    model: nn.Module, optimizer: torch.optim.Optimizer, reader: SliceReader, stepped: Stepped = itself
) -> None:
    """The same back, all of it on every rank: in place for model and masters, anew for the optimizer's
    state."""
    load_model(model, reader)
    for name, parameter in parameters(model).items():
        state: dict[str, Any] = {}
        for key in reader.states(name):
            stored = f"{OPTIMIZER}{name}.{key}"
            shape, dtype = reader.shape(stored), reader.dtype(stored)
            like = parameter.detach() if shape == parameter.shape else torch.empty(shape)
            state[key] = torch.empty_like(like, dtype=dtype)
            read_whole(reader, stored, state[key])
        master = stepped(parameter)
        if MASTER in state:
            master.data.copy_(state.pop(MASTER))
        optimizer.state.pop(master, None)
        if state:
            optimizer.state[master] = state


def load_model(model: nn.Module, reader: SliceReader) -> None:
    """Parameters and buffers, whole and in place."""
    for name, tensor in model_tensors(model).items():
        read_whole(reader, name, tensor)


def share(
    tensors: Mapping[str, Tensor], rank: int, size: int, buffers: Container[str] = ()
) -> Iterator[Slice]:
    """Part `rank` of all elements in a row. Rank 0 has what has no element. `buffers`: names of such."""
    total = sum(tensor.numel() for tensor in tensors.values())
    start, end = (total * part // size for part in (rank, rank + 1))
    before = 0
    for name, tensor in tensors.items():
        first, last = max(start - before, 0), min(end - before, tensor.numel())
        if first < last or (tensor.numel() == 0 and rank == 0):
            data = tensor.reshape(-1)[first:last]
            yield Slice(name, tuple(tensor.shape), first, data, name in buffers)
        before += tensor.numel()


def read_whole(reader: SliceReader, name: str, tensor: Tensor) -> None:
    """Fills a tensor of the stored shape."""
    flat = tensor.reshape(-1)  # a copy where the tensor is not contiguous
    reader.read(name, flat)
    if flat.data_ptr() != tensor.data_ptr():
        tensor.copy_(flat.view(tensor.shape))
