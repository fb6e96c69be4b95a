"""When blocks of parameters come and go (ZeRO-3): hooks of the model, and of autograd.

    forward   of the model: a pass begins, the root is gathered; of a block: it is gathered, freed afterwards
    backward  when a gradient reaches the model's output a pass begins, and a block is gathered when one
              reaches its own; it is freed when its parameters have their gradients and, if it has frozen
              ones, its inputs theirs. Recomputing a forward (torch.utils.checkpoint) frees nothing.

Freeing after backward counts as a change of the parameters to autograd, so that what would still read them is
an error and no zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainer.blocks import Members
from trainer.errors import TrainerError
from trainer.gathering import BACKWARD, FORWARD, Block, Gathering


@dataclass
class _Use:
    """What backward still has to do with a block. `forwards`: those of this round that have a graph."""

    block: Block
    trainable: int
    frozen: bool
    forwards: int = 0
    pending: int = 0  # of these, whose backward has not begun
    arrived: int = 0  # gradients of parameters
    inputs: set[object] = field(default_factory=set)  # that have no gradient yet


class BlockHooks:
    """`blocks` and `members` correspond, the root first. `paused`: everything is there, and stays."""

    def __init__(
        self,
        model: nn.Module,
        members: Sequence[Members],
        blocks: Sequence[Block],
        gathering: Gathering,
        names: Mapping[int, str],
    ) -> None:
        """`names`: of parameters, by id."""
        self.paused = False
        self._gathering = gathering
        self._names = names
        self._in_backward = False
        self._uses = [
            _Use(
                block,
                sum(parameter.requires_grad for parameter in part.parameters),
                not all(parameter.requires_grad for parameter in part.parameters),
            )
            for block, part in zip(blocks, members, strict=True)
        ]
        root, *others = zip(self._uses, members, strict=True)
        self._handles: list[Any] = [
            model.register_forward_pre_hook(self._before_model, prepend=True),
            model.register_forward_hook(self._after_model),
        ]
        for use, part in others:
            before, after = partial(self._before_block, use), partial(self._after_block, use)
            self._handles.append(
                part.module.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
            )
            self._handles.append(part.module.register_forward_hook(after))
        for use, part in (root, *others):
            for parameter in part.parameters:
                if parameter.requires_grad:
                    arrived = partial(self._arrived, use)
                    self._handles.append(parameter.register_post_accumulate_grad_hook(arrived))  # type: ignore[no-untyped-call]

    def end_round(self) -> None:
        """Nothing is used any more, and no graph is waiting for its backward."""
        self._gathering.let_go()
        self._in_backward = False
        for use in self._uses:
            use.forwards = use.pending = use.arrived = 0
            use.inputs.clear()

    def remove(self) -> None:
        self.paused = True  # hooks of graphs are still there
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _before_model(self, *_: object) -> None:
        if not self.paused:
            self._gathering.let_go()
            self._in_backward = False
            self._gathering.begin(FORWARD)
            self._gathering.need(self._uses[0].block)

    def _after_model(self, _: nn.Module, __: object, outputs: Any) -> None:
        if self.paused:
            return
        self._gathering.drain()
        if not self._outputs(self._uses[0], outputs):
            self._gathering.free(self._uses[0].block)

    def _before_block(self, use: _Use, _: nn.Module, args: Any, kwargs: Any) -> None:
        if self.paused:
            return
        self._gathering.need(use.block)
        # In a recomputation these hooks fire only if the forward itself had no graph.
        if use.frozen and torch.is_grad_enabled() and not (self._in_backward and use.forwards):
            for tensor in _with_gradient((args, kwargs)):
                token = object()
                use.inputs.add(token)
                tensor.register_hook(partial(self._input_done, use, token))  # type: ignore[no-untyped-call]

    def _after_block(self, use: _Use, _: nn.Module, __: object, outputs: Any) -> None:
        if self.paused:
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
                "gradient: expected one, or a tuple, list, dict or dataclass of such"
            )
        if tensors:
            first = [True]
            if not self._in_backward:
                use.forwards += 1
                use.pending += 1
            counted = not self._in_backward
            for tensor in tensors:
                tensor.register_hook(partial(self._output_reached, use, first, counted))  # type: ignore[no-untyped-call]
        return bool(tensors)

    def _output_reached(self, use: _Use, first: list[bool], counted: bool, _: Tensor) -> None:
        if self.paused:
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
        if self.paused:
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
        if self.paused or not self._in_backward or not use.block.held:
            return
        if not use.block.index and use.frozen:
            return  # of the root's inputs nothing is known
        if use.arrived >= use.trainable and not use.inputs:
            use.arrived = 0
            if not use.pending:
                for parameter in use.block.parameters:  # torch 2.4 takes no list
                    torch.autograd.graph.increment_version(parameter)
            self._gathering.free(use.block)


def _with_gradient(values: Any) -> list[Tensor]:
    """The tensors that need a gradient, in what a module takes or returns."""
    if isinstance(values, Tensor):
        return [values] if values.requires_grad else []
    if isinstance(values, Mapping):
        values = values.values()
    elif is_dataclass(values):
        values = vars(values).values()
    elif not isinstance(values, (tuple, list)):
        return []
    return [tensor for value in values for tensor in _with_gradient(value)]
