"""In the optimizer, in the place of a model's parameters, this rank's slices of them.

A slice is a one-dimensional view of the part of a parameter that the rank owns: stepping on it updates the
store in place; or, of a 16-bit parameter with master weights, a float32 copy of that part, which goes into
the store, rounded, after a step. Being a parameter of its own to the optimizer, it has its own state, and is
left alone where the whole parameter would be (no gradient, so no weight decay either).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from pycomm import Communicator
from trainer.checkpoint.slices import (
    MODEL,
    OPTIMIZER,
    Slice,
    SliceReader,
    buffers,
    model_tensors,
    read_whole,
    share,
)
from trainer.errors import TrainerError
from trainer.gradients import Slot
from trainer.layout import Piece
from trainer.master_weights import KEY as MASTER
from trainer.master_weights import Copies, widened
from trainer.store import Store

STEP = "step"  # torch counts steps in a tensor without dimensions, which a parameter may be too


class Shards:
    """Puts slices of the parameters that are in `store` into the optimizer.

    `pieces` and `slices` correspond. State that the optimizer had is cut like the parameters.
    """

    def __init__(
        self,
        comm: Communicator,
        store: Store,
        optimizer: torch.optim.Optimizer,
        *,
        master_weights: bool = False,
    ) -> None:
        self.slots = store.slots
        self._comm = comm
        self._store = store
        self._optimizer = optimizer
        self.pieces = store.layout.pieces(comm.rank)
        self._views = [nn.Parameter(store.own(piece)) for piece in self.pieces]
        self.masters = Copies()
        self.slices = [
            self.masters.of(view, self.slots[piece.slot].parameter) if master_weights else view
            for piece, view in zip(self.pieces, self._views, strict=True)
        ]
        self._whole = [list(group["params"]) for group in optimizer.param_groups]
        self._into_optimizer()

    def before_step(self) -> None:
        """Blocks where owners have to wait until nobody reads the parameters any more."""
        self._store.before_step()
        self.masters.follow()

    def after_step(self) -> None:
        """This rank's slices are changed; does not block."""
        self.masters.publish()
        self._store.after_step()
        # The optimizer changed slices, whose version counters are their own: autograd has to know.
        for slot in self.slots:  # torch 2.4 takes no list
            torch.autograd.graph.increment_version(slot.parameter)
        self.masters.settle()

    def give_back(self) -> None:
        """The optimizer holds whole parameters again; the state of their slices is dropped."""
        for group, parameters in zip(self._optimizer.param_groups, self._whole, strict=False):
            group["params"] = parameters
        for own in self.slices:
            self._optimizer.state.pop(own, None)

    def _into_optimizer(self) -> None:
        state = self._optimizer.state
        mine: defaultdict[int, list[Tensor]] = defaultdict(list)  # by id of the parameter
        for piece, own in zip(self.pieces, self.slices, strict=True):
            parameter = self.slots[piece.slot].parameter
            mine[id(parameter)].append(own)
            if parameter in state:
                state[own] = {
                    name: widened(slice_of_state(name, value, parameter, piece), parameter, own)
                    for name, value in state[parameter].items()
                }
        for slot in self.slots:
            state.pop(slot.parameter, None)
        for group in self._optimizer.param_groups:
            group["params"] = [own for parameter in group["params"] for own in mine[id(parameter)]]

    def saved(self, model: nn.Module) -> Iterator[Slice]:
        """This rank's slices of parameters and of the optimizer's state, and its share of everything else."""
        owners = self._comm.size // self._store.layout.ranks  # of each piece, who take turns
        mine = zip(self._views, self._mine(), strict=True)
        for view, (slot, piece, own) in islice(mine, self._comm.rank % owners, None, owners):
            shape = tuple(slot.parameter.shape)
            yield Slice(MODEL + slot.name, shape, piece.start, view.detach())
            if own is not view:
                yield Slice(f"{OPTIMIZER}{slot.name}.{MASTER}", shape, piece.start, own.detach())
            for key, value in self._optimizer.state.get(own, {}).items():
                name = f"{OPTIMIZER}{slot.name}.{key}"
                if is_per_element(key, value, own.shape):
                    yield Slice(name, shape, piece.start, value)
                elif isinstance(value, Tensor):
                    if piece.start == 0:  # it is the same for all slices
                        yield Slice(name, tuple(value.shape), 0, value.reshape(-1))
                elif value is not None:
                    raise TrainerError(
                        f"checkpoints hold tensors: {type(self._optimizer).__name__} keeps {key} of "
                        f"{slot.name} as {type(value).__name__}"
                    )
        yield from self._store.frozen()
        sharded = self._store.names(model)
        rest = {name: tensor for name, tensor in model_tensors(model).items() if name not in sharded}
        yield from share(rest, self._comm.rank, self._comm.size, buffers(model))

    def load(self, model: nn.Module, reader: SliceReader) -> None:
        """The same back, whoever saved it: the model as the store has it, of the optimizer's state this
        rank's slices."""
        self._store.load(model, reader)
        for slot, piece, own in self._mine():
            state: dict[str, Tensor] = {}
            for key in reader.states(slot.name):
                name = f"{OPTIMIZER}{slot.name}.{key}"
                shape, dtype = reader.shape(name), reader.dtype(name)
                if key != STEP and shape == tuple(slot.parameter.shape):
                    state[key] = torch.empty(piece.count, dtype=dtype)
                    reader.read(name, state[key], piece.start)
                else:
                    state[key] = torch.empty(shape, dtype=dtype)
                    read_whole(reader, name, state[key])
            if MASTER in state:
                own.data.copy_(state.pop(MASTER))
            self._optimizer.state.pop(own, None)
            if state:
                self._optimizer.state[own] = state
        self.masters.settle()

    def _mine(self) -> Iterator[tuple[Slot, Piece, nn.Parameter]]:
        for piece, own in zip(self.pieces, self.slices, strict=True):
            yield self.slots[piece.slot], piece, own


def slice_of_state(name: str, value: Any, parameter: Tensor, piece: Piece) -> Any:
    """The part of one entry of a parameter's state that belongs to a slice of it.

    What has the parameter's shape is cut; anything else, such as the number of steps, is the same for all.
    """
    if is_per_element(name, value, parameter.shape):
        return value.reshape(-1)[piece.start : piece.start + piece.count].clone()
    return value.clone() if isinstance(value, Tensor) else value


def is_per_element(name: str, value: Any, shape: Sequence[int]) -> bool:
    """Whether an entry of a state has an element for each of the parameter's."""
    return isinstance(value, Tensor) and name != STEP and tuple(value.shape) == tuple(shape)
