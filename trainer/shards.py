"""A model's parameters in flat buffers, and in the optimizer, in their place, this rank's slices of them.

A slice is a one-dimensional view of the part of a parameter that the rank owns: stepping on it updates the
model in place; or, of a 16-bit parameter with master weights, a float32 copy of that part, which goes into
the model, rounded, when it is gathered. Being a parameter of its own to the optimizer, it has its own state,
and is left alone where the whole parameter would be (no gradient, so no weight decay either).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

import pycomm
from pycomm import Communicator
from trainer.checkpoint.slices import (
    MODEL,
    OPTIMIZER,
    Slice,
    SliceReader,
    buffers,
    load_model,
    model_tensors,
    read_whole,
    share,
)
from trainer.errors import TrainerError
from trainer.files import on_every_rank
from trainer.gradients import Slot
from trainer.layout import Piece, ShardLayout
from trainer.master_weights import KEY as MASTER
from trainer.master_weights import Copies, widened
from trainer.shared_memory import shared_zeros

STEP = "step"  # torch counts steps in a tensor without dimensions, which a parameter may be too


class Shards:
    """Moves the parameters of `slots` into flat buffers, and puts slices of them into the optimizer.

    `pieces` and `slices` correspond. State that the optimizer had is cut like the parameters. `shared`: all
    ranks, on one node, have the same buffers; then no owner writes before all ranks are in before_step(),
    and nobody reads before all have come to gather(). Where the layout has one part, all ranks own all of it
    and nothing is gathered. Collective.
    """

    def __init__(
        self,
        comm: Communicator,
        layout: ShardLayout,
        slots: Sequence[Slot],
        optimizer: torch.optim.Optimizer,
        *,
        shared: bool,
        master_weights: bool = False,
    ) -> None:
        outside = [slot.name for slot in slots if slot.group == len(optimizer.param_groups)]
        if outside:
            raise TrainerError(
                f"{outside[0]} requires a gradient and is not in the optimizer (one of {len(outside)}): "
                "nobody would update it; add it, or set requires_grad to False"
            )
        self._comm = comm
        self._layout = layout
        self.slots = slots
        self._optimizer = optimizer
        self._shared = shared
        self.flat = [
            shared_zeros(comm, size, getattr(torch, dtype))
            if shared
            else comm.empty(size, getattr(torch, dtype)).zero_()
            for size, dtype in zip(layout.sizes, layout.dtypes, strict=True)
        ]
        self._gathering: list[pycomm.Work[Any]] = []
        self._given_back = False
        for slot, (bucket, offset, count) in zip(slots, layout.places, strict=True):
            view = self.flat[bucket][offset : offset + count].view(slot.parameter.shape)
            if comm.rank == 0 or not shared:
                view.copy_(slot.parameter.data)
            slot.parameter.data = view
        if shared:
            comm.barrier()
        self.pieces = layout.pieces(comm.rank)
        self._views = [
            nn.Parameter(self.flat[piece.bucket][piece.offset : piece.offset + piece.count])
            for piece in self.pieces
        ]
        self.masters = Copies()
        self.slices = [
            self.masters.of(view, slots[piece.slot].parameter) if master_weights else view
            for piece, view in zip(self.pieces, self._views, strict=True)
        ]
        self._whole = [list(group["params"]) for group in optimizer.param_groups]
        self._into_optimizer()

    @property
    def nbytes(self) -> int:
        """What the flat buffers take: of those that are shared, this rank's share."""
        return sum(flat.nbytes for flat in self.flat) // (self._comm.size if self._shared else 1)

    def before_step(self) -> None:
        """Blocks where owners have to wait until nobody reads the parameters any more."""
        if self._shared:
            self._comm.barrier()
        self.masters.follow()

    def gather(self) -> None:
        """Starts to give everyone this rank's parts and to get the others'; does not block.

        The parameters may be read after wait(). Buckets come in the order in which a forward reads them.
        """
        self.masters.publish()
        if self._shared:
            self._gathering.append(self._comm.barrier_async())
        alone = self._shared or self._layout.ranks == 1
        for bucket in () if alone else reversed(range(len(self.flat))):
            flat = self.flat[bucket]
            mine = flat[self._layout.part(bucket, self._comm.rank)]
            self._gathering.append(self._comm.all_gather_async(mine, out=flat))
        # The optimizer changed slices, whose version counters are their own: autograd has to know.
        torch.autograd.graph.increment_version([slot.parameter for slot in self.slots])
        self.masters.settle()

    @property
    def gathering(self) -> bool:
        """Whether parameters are on their way."""
        return bool(self._gathering)

    def wait(self) -> None:
        """Blocks until all parameters are everyone's."""
        while self._gathering:
            self._gathering.pop(0).wait()
        if self._given_back:
            self._part()

    def give_back(self) -> None:
        """The optimizer holds whole parameters again; the state of their slices is dropped. Parameters that
        ranks share become each one's own, while some are on their way only with the next wait()."""
        self._given_back = True
        if not self._gathering:
            self._part()
        for group, parameters in zip(self._optimizer.param_groups, self._whole, strict=False):
            group["params"] = parameters
        for own in self.slices:
            self._optimizer.state.pop(own, None)

    def _part(self) -> None:
        """Parameters that ranks share become each one's own."""
        if self._shared:
            for slot in self.slots:
                slot.parameter.data = slot.parameter.data.clone()
        self._shared = False

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
        owners = self._comm.size // self._layout.ranks  # of each piece, who take turns
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
        sharded = {MODEL + slot.name for slot in self.slots if slot.parameter.numel()}
        rest = {name: tensor for name, tensor in model_tensors(model).items() if name not in sharded}
        yield from share(rest, self._comm.rank, self._comm.size, buffers(model))

    def load(self, model: nn.Module, reader: SliceReader) -> None:
        """The same back, whoever saved it: the model whole, of the optimizer's state this rank's slices."""
        if self._shared:  # nobody goes on before all have written, nor where one could not
            on_every_rank(self._comm, lambda: load_model(model, reader))
        else:
            load_model(model, reader)
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
