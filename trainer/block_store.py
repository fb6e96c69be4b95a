"""Parameters of which each rank has a part, and all of them only while they are used (ZeRO-3).

A block (trainer/blocks.py) is gathered before its forward and freed after it, and again around its backward,
at the same addresses (trainer/gathering.py says in which order). The hooks here say when:

    forward   of the model: a pass begins, the root is gathered; of a block: it is gathered, freed afterwards
    backward  when a gradient reaches the model's output a pass begins, and a block is gathered when one
              reaches its own; it is freed when its parameters have their gradients and, if it has frozen
              ones, its inputs theirs. Recomputing a forward (torch.utils.checkpoint) frees nothing.

Freeing after backward counts as a change of the parameters to autograd, so that what would still read them is
an error and no zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pycomm import Communicator
from trainer.block_layout import block_layout, frozen_layout
from trainer.blocks import Members
from trainer.checkpoint.slices import MODEL, Slice, SliceReader, model_tensors, read_whole
from trainer.errors import TrainerError
from trainer.gathering import BACKWARD, DONE, FORWARD, WHOLE, Block, Gathering
from trainer.gradients import Slot
from trainer.layout import Piece, ShardLayout
from trainer.store import Store


@dataclass
class _Use:
    """What backward still has to do with a block. `forwards`: those of this round that have a graph."""

    block: Block
    module: nn.Module
    trainable: int
    frozen: bool
    forwards: int = 0
    pending: int = 0  # of these, whose backward has not begun
    arrived: int = 0  # gradients of parameters
    inputs: set[object] = field(default_factory=set)  # that have no gradient yet


class BlockStore(Store):
    """Shards the parameters of `members`, of which the first is the root. `slots`: those that are trained.

    Forwards of ranks may differ in number and order (trainer/gathering.py); before a rank does something else
    that the others have to take part in, it calls finish().
    """

    def __init__(
        self, comm: Communicator, model: nn.Module, members: Sequence[Members], slots: Sequence[Slot]
    ) -> None:
        alone = comm.split(0, comm.rank)
        assert alone is not None
        self._comm = comm
        self._model = model
        self.slots = slots
        self.layout = block_layout(members, slots, comm.size)
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
        self._in_backward = False
        self._whole = False
        self._left = False
        self._uses = [
            _Use(
                block,
                part.module,
                sum(parameter.requires_grad for parameter in part.parameters),
                not all(parameter.requires_grad for parameter in part.parameters),
            )
            for block, part in zip(self._blocks, members, strict=True)
        ]
        self._hook(members)

    @property
    def nbytes(self) -> int:
        """This rank's parts, and the most that was gathered at a time."""
        parts = sum(shard.nbytes for block in self._blocks for shard in block.shards)
        return parts + self._gathering.most_nbytes

    @property
    def waited_s(self) -> float:  # type: ignore[override]
        return self._gathering.waited_s

    @waited_s.setter
    def waited_s(self, seconds: float) -> None:
        self._gathering.waited_s = seconds

    def own(self, piece: Piece) -> Tensor:
        start = piece.offset - self.layout.part(piece.bucket, self._comm.rank).start
        return self._own[piece.bucket][start : start + piece.count]

    def before_step(self) -> None:
        if self._whole:
            raise TrainerError("optimizer.step() within gathered(): leave the block first")

    def after_step(self) -> None:
        """Nothing travels before it is needed."""

    def wait(self) -> None:
        """Nothing, but after the store was left: then the model gets its parameters. Collective then."""
        if self._left and self._hooks:
            self.restore()

    def finish(self) -> None:
        if self._whole or not self._hooks:
            return
        self._let_go()
        self._in_backward = False
        for use in self._uses:
            use.forwards = use.pending = use.arrived = 0
            use.inputs.clear()
        self._gathering.begin(DONE)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within it the model has whole parameters. Changes, the same on all ranks, stay. Collective."""
        if self._whole or not self._hooks:
            yield
            return
        self._all()
        self._whole = True
        try:
            yield
        finally:
            for block, parts in zip(self._blocks, self._parts, strict=True):
                block.keep_changes(parts)
            self._whole = False
            self._let_go()

    def whole(self, named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """One block is there at a time."""
        block_of = {id(parameter): block for block in self._blocks for parameter in block.parameters}
        for name, tensor in named:
            block = block_of.get(id(tensor))
            if block is not None and not block.held:
                self._let_go()
                self._gathering.need(block)
            yield name, tensor
        if not self._whole:
            self._let_go()

    def frozen(self) -> Iterator[Slice]:
        for parameter, piece, own in self._frozen:
            yield Slice(MODEL + self._names[id(parameter)], tuple(parameter.shape), piece.start, own)

    def load(self, model: nn.Module, reader: SliceReader) -> None:
        """Of the parameters, this rank's elements alone."""
        self._let_go()
        for piece in self.layout.pieces(self._comm.rank):
            reader.read(MODEL + self.slots[piece.slot].name, self.own(piece), piece.start)
        for part in self.frozen():
            reader.read(part.name, part.data, part.offset)
        sharded = self.names(model)
        for name, tensor in model_tensors(model).items():
            if name not in sharded:
                read_whole(reader, name, tensor)

    def restore(self) -> None:
        if not self._hooks:
            return
        self._let_go()
        self._gathering.begin(WHOLE)
        for block in self._blocks:
            self._gathering.need(block)
            block.leave()
            self._gathering.free(block)
        torch.autograd.graph.increment_version([slot.parameter for slot in self.slots])
        self._unhook()

    def leave(self) -> None:
        self._left = True

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

    # ---- when they are there

    def _hook(self, members: Sequence[Members]) -> None:
        self._hooks: list[Any] = [
            self._model.register_forward_pre_hook(self._before_model, prepend=True),
            self._model.register_forward_hook(self._after_model),
            self._model.register_state_dict_pre_hook(self._before_state_dict),  # type: ignore[no-untyped-call]
        ]
        for use, part in zip(self._uses, members, strict=True):
            if use.block.index:
                self._hooks.append(
                    part.module.register_forward_pre_hook(
                        partial(self._before_block, use), with_kwargs=True, prepend=True
                    )
                )
                self._hooks.append(part.module.register_forward_hook(partial(self._after_block, use)))
            for parameter in part.parameters:
                if parameter.requires_grad:
                    self._hooks.append(
                        parameter.register_post_accumulate_grad_hook(partial(self._arrived, use))  # type: ignore[no-untyped-call]
                    )

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _before_model(self, *_: object) -> None:
        if self._left:
            self.restore()
        elif not self._whole:
            self._let_go()
            self._in_backward = False
            self._gathering.begin(FORWARD)
            self._gathering.need(self._blocks[0])

    def _after_model(self, _: nn.Module, __: object, outputs: Any) -> None:
        if self._whole or not self._hooks:
            return
        self._gathering.drain()
        graph = self._outputs(self._uses[0], outputs)
        if not graph:
            self._gathering.free(self._blocks[0])

    def _before_block(self, use: _Use, _: nn.Module, args: Any, kwargs: Any) -> None:
        if self._whole or not self._hooks:
            return
        self._gathering.need(use.block)
        # In a recomputation these hooks fire only if the forward itself had no graph.
        if use.frozen and torch.is_grad_enabled() and not (self._in_backward and use.forwards):
            for tensor in _with_gradient((args, kwargs)):
                token = object()
                use.inputs.add(token)
                tensor.register_hook(partial(self._input_done, use, token))

    def _after_block(self, use: _Use, _: nn.Module, __: object, outputs: Any) -> None:
        if self._whole or not self._hooks:
            return
        self._outputs(use, outputs)
        if not self._in_backward:
            self._gathering.free(use.block)

    def _outputs(self, use: _Use, outputs: Any) -> bool:
        """Makes the block come back when a gradient reaches its outputs; whether one can."""
        tensors = _with_gradient(outputs)
        if torch.is_grad_enabled() and use.trainable and not tensors and use.block.index:
            raise TrainerError(
                f"block {use.block.name} has parameters to train, and returns no tensor that needs a "
                "gradient: expected one, or a tuple, list or dict of such"
            )
        if tensors:
            first = [True]
            if not self._in_backward:
                use.forwards += 1
                use.pending += 1
            counted = not self._in_backward
            for tensor in tensors:
                tensor.register_hook(partial(self._output_reached, use, first, counted))
        return bool(tensors)

    def _output_reached(self, use: _Use, first: list[bool], counted: bool, _: Tensor) -> None:
        if self._whole or not self._hooks:
            return
        if not self._in_backward:
            self._in_backward = True
            self._gathering.begin(BACKWARD)
        self._gathering.need(use.block)
        if first[0] and counted:
            use.pending -= 1
        first[0] = False

    def _input_done(self, use: _Use, token: object, _: Tensor) -> None:
        use.inputs.discard(token)
        self._free_if_done(use)

    def _arrived(self, use: _Use, parameter: Tensor) -> None:
        if self._whole or not self._hooks:
            return
        if not use.block.held:
            raise TrainerError(
                f"the gradient of {self._names[id(parameter)]} was computed while its block, "
                f"{use.block.name or 'the root'}, was not gathered: it is used without its module being "
                "called; choose others by blocks="
            )
        use.arrived += 1
        self._free_if_done(use)

    def _free_if_done(self, use: _Use) -> None:
        if self._in_backward and use.block.held and use.arrived >= use.trainable and not use.inputs:
            if not use.block.index and use.frozen:
                return  # of the root's inputs nothing is known
            use.arrived = 0
            if not use.pending:
                torch.autograd.graph.increment_version(use.block.parameters)
            self._gathering.free(use.block)

    def _before_state_dict(self, _: nn.Module, __: str, keep_vars: bool) -> None:
        if not self._whole and not keep_vars:
            raise TrainerError(
                "state_dict() of parameters that are in shards: call it within `with parallel.gathered():`, "
                "on all ranks"
            )

    def _all(self) -> None:
        self._let_go()
        self._gathering.begin(WHOLE)
        for block in self._blocks:
            self._gathering.need(block)

    def _let_go(self) -> None:
        for block in self._blocks:
            if block.held:
                self._gathering.free(block)


def _with_gradient(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.requires_grad]
