"""Parameters of which each rank has a part, and all of them only while they are used (ZeRO-3).

A block (trainer/blocks.py) is gathered before its forward and freed after it, and again around its backward,
at the same addresses. trainer/block_hooks.py says when, trainer/gathering.py in which order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pycomm import Communicator
from trainer.block_hooks import BlockHooks
from trainer.block_layout import block_layout, frozen_layout
from trainer.blocks import Members
from trainer.checkpoint.slices import MODEL, Slice, SliceReader, model_tensors, read_whole
from trainer.errors import TrainerError
from trainer.exact import Exact
from trainer.gathering import DONE, WHOLE, Block, Gathering
from trainer.gradients import Slot
from trainer.layout import Piece, ShardLayout
from trainer.store import Store


class BlockStore(Store):
    """Shards the parameters of `members`, of which the first is the root. `slots`: those that are trained.

    Forwards of ranks may differ in number and order (trainer/gathering.py); before a rank does something else
    that the others have to take part in, it calls finish().
    """

    def __init__(
        self,
        comm: Communicator,
        model: nn.Module,
        members: Sequence[Members],
        slots: Sequence[Slot],
        exact: Exact | None = None,
    ) -> None:
        alone = comm.split(0, comm.rank)
        assert alone is not None
        self._comm = comm
        self._model = model
        self.slots = slots
        self.layout = block_layout(members, slots, comm.size, exact)
        self._blocks = [Block(alone, index, part.name) for index, part in enumerate(members)]
        self._parts: list[list[slice]] = [[] for _ in members]
        self._own: list[Tensor] = []  # by bucket of the layout
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        frozen, layout = frozen_layout(members, comm.size)
        self.held = frozenset(id(p) for p in [*(slot.parameter for slot in slots), *(p for _, p in frozen)])
        self._frozen: list[tuple[nn.Parameter, Piece, Tensor]] = []
        self._take_trainable(members)
        self._take_frozen(frozen, layout)
        self._gathering = Gathering(alone, self._blocks)
        self._hooks = BlockHooks(model, members, self._blocks, self._gathering, self._names)
        self._state_dict_hook: Any = model.register_state_dict_pre_hook(self._before_state_dict)  # type: ignore[no-untyped-call]
        self._forward_hook: Any = None  # of the model that was left
        self._restored = False
        self._whole = False

    @property
    def nbytes(self) -> int:
        """This rank's parts, and the most that was gathered at a time."""
        parts = sum(shard.nbytes for block in self._blocks for shard in block.shards)
        return parts + self._gathering.most_nbytes

    @property
    def waited_s(self) -> float:
        return self._gathering.waited_s

    @waited_s.setter
    def waited_s(self, seconds: float) -> None:
        self._gathering.waited_s = seconds

    def own(self, piece: Piece) -> Tensor:
        start = piece.offset - self.layout.part(piece.bucket, self._comm.rank).start
        return self._own[piece.bucket][start : start + piece.count]

    def before_step(self) -> None:
        if self._hooks.paused:
            raise TrainerError("optimizer.step() within gathered(): leave the block first")

    def after_step(self) -> None:
        """Nothing travels before it is needed."""

    def wait(self) -> None:
        """Nothing, but after the store was left: then the model gets its parameters. Collective then."""
        if self._forward_hook is not None:
            self.restore()

    def finish(self) -> None:
        if not self._hooks.paused:
            self._hooks.end_round()
            self._gathering.begin(DONE)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within it the model has whole parameters. Changes, the same on all ranks, stay. Collective."""
        self.wait()
        if self._hooks.paused:
            yield
            return
        self._gathering.let_go()
        self._gathering.begin(WHOLE)
        for block in self._blocks:
            self._gathering.need(block)
        self._hooks.paused = self._whole = True
        try:
            yield
        finally:
            for block, parts in zip(self._blocks, self._parts, strict=True):
                block.keep_changes(parts)
            self._hooks.paused = self._whole = False
            self._gathering.let_go()

    def whole(self, named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """One block is there at a time."""
        block_of = {id(parameter): block for block in self._blocks for parameter in block.parameters}
        for name, tensor in named:
            block = block_of.get(id(tensor))
            if block is not None and not block.held:
                self._gathering.let_go()
                self._gathering.need(block)
            yield name, tensor
        if not self._whole:
            self._gathering.let_go()

    def frozen(self) -> Iterator[Slice]:
        for parameter, piece, own in self._frozen:
            yield Slice(MODEL + self._names[id(parameter)], tuple(parameter.shape), piece.start, own)

    def load(self, model: nn.Module, reader: SliceReader) -> None:
        """Of the parameters, this rank's elements alone."""
        self._gathering.let_go()
        for piece in self.layout.pieces(self._comm.rank):
            reader.read(MODEL + self.slots[piece.slot].name, self.own(piece), piece.start)
        for part in self.frozen():
            reader.read(part.name, part.data, part.offset)
        sharded = self.names(model)
        for name, tensor in model_tensors(model).items():
            if name not in sharded:
                read_whole(reader, name, tensor)

    def restore(self) -> None:
        if self._restored:
            return
        self._gathering.let_go()
        self._gathering.begin(WHOLE)
        for block in self._blocks:
            self._gathering.need(block)
            block.leave()
            self._gathering.free(block)
        # A graph from before would read memory that is gone.
        for slot in self.slots:  # torch 2.4 takes no list
            torch.autograd.graph.increment_version(slot.parameter)
        self._hooks.remove()
        self._state_dict_hook.remove()
        if self._forward_hook is not None:
            self._forward_hook.remove()
            self._forward_hook = None
        self._restored = True

    def leave(self) -> None:
        """After an exception, the parameters are still in parts: the next forward brings them."""
        if not self._restored:
            self._hooks.remove()
            self._forward_hook = self._model.register_forward_pre_hook(self._restore_before, prepend=True)

    # ---- how parameters come in

    def _take_trainable(self, members: Sequence[Members]) -> None:
        inside: list[list[tuple[nn.Parameter, int]]] = [[] for _ in self.layout.sizes]
        for slot, (bucket, offset, _) in zip(self.slots, self.layout.places, strict=True):
            inside[bucket].append((slot.parameter, offset))
        block_of = {id(p): index for index, part in enumerate(members) for p in part.parameters}
        for bucket, parameters in enumerate(inside):
            block = block_of[id(parameters[0][0])]
            part = self.layout.part(bucket, self._comm.rank)
            self._parts[block].append(part)
            self._own.append(self._blocks[block].add(self.layout.sizes[bucket], part, parameters))

    def _take_frozen(self, frozen: Sequence[tuple[int, nn.Parameter]], layout: ShardLayout) -> None:
        own: list[Tensor] = []
        for bucket, size in enumerate(layout.sizes):
            part = layout.part(bucket, self._comm.rank)
            inside = [i for i, place in enumerate(layout.places) if place[0] == bucket]
            block = frozen[inside[0]][0]
            self._parts[block].append(part)
            parameters = [(frozen[i][1], layout.places[i][1]) for i in inside]
            own.append(self._blocks[block].add(size, part, parameters))
        for piece in layout.pieces(self._comm.rank):
            start = piece.offset - layout.part(piece.bucket, self._comm.rank).start
            data = own[piece.bucket][start : start + piece.count]
            self._frozen.append((frozen[piece.slot][1], piece, data))

    # ---- hooks

    def _restore_before(self, *_: object) -> None:
        self.restore()

    def _before_state_dict(self, _: nn.Module, __: str, keep_vars: bool) -> None:
        if not keep_vars and not self._whole:
            raise TrainerError(
                "state_dict() of parameters that are in shards: call it within `with parallel.gathered():`, "
                "on all ranks"
            )
