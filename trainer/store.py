"""Where the parameters of a sharded model are: what Zero asks of a store, and the store of stages 1 and 2.

A store gives out this rank's elements of each parameter, which the optimizer changes in place, and sees to it
that the model has the others'.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

import pycomm
from pycomm import Communicator
from trainer.checkpoint.slices import MODEL, Slice, SliceReader, load_model
from trainer.files import on_every_rank
from trainer.gradients import Slot
from trainer.layout import Piece, ShardLayout
from trainer.shared_memory import shared_zeros


class Store(ABC):
    """Made collectively; what else is collective says so. `layout`: of the trainable parameters, the `slots`.

    `held`: ids of the parameters that are in it. `waited_s`: how long calls, and hooks of the model, have
    blocked.
    """

    layout: ShardLayout
    slots: Sequence[Slot]
    held: frozenset[int]
    waited_s: float = 0.0

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """What this rank has of them in memory, at most."""

    @abstractmethod
    def own(self, piece: Piece) -> Tensor:
        """The memory of a piece of this rank's, one-dimensional."""

    @abstractmethod
    def before_step(self) -> None:
        """Blocks where owners have to wait until nobody reads the parameters any more."""

    @abstractmethod
    def after_step(self) -> None:
        """This rank's elements are changed; does not block."""

    @abstractmethod
    def wait(self) -> None:
        """Blocks until the parameters of the last step are where a forward finds them."""

    def finish(self) -> None:  # noqa: B027
        """This rank makes no forward and no backward until all ranks have come here. Collective, blocks."""

    def names(self, model: nn.Module) -> set[str]:
        """What the parameters in it that have elements are called in a checkpoint."""
        named = model.named_parameters()
        return {MODEL + name for name, parameter in named if id(parameter) in self.held and parameter.numel()}

    def frozen(self) -> Iterator[Slice]:
        """This rank's elements of the parameters in it that need no gradient."""
        return iter(())

    def gathered(self) -> AbstractContextManager[None]:
        """Within it the model has whole parameters. Changes, the same on all ranks, stay. Collective."""
        self.wait()
        return nullcontext()

    def whole(self, named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Tensors of the model, each whole until the next is asked for. Collective: all ranks take all."""
        self.wait()
        return iter(named)

    @abstractmethod
    def load(self, model: nn.Module, reader: SliceReader) -> None:
        """Takes the model's tensors from a checkpoint."""

    @abstractmethod
    def restore(self) -> None:
        """Blocks until the model has whole parameters of the last step. Collective."""

    @abstractmethod
    def leave(self) -> None:
        """The store is no longer needed once the model has whole parameters, which are each rank's own then.
        Does not communicate."""


class Replicas(Store):
    """Every rank has all parameters, in flat buffers; after a step they travel while other work is done.

    `shared`: all ranks, on one node, have the same buffers; then no owner writes before all ranks are in
    before_step(), and nobody reads before all have come to after_step().
    """

    def __init__(
        self,
        comm: Communicator,
        model: nn.Module,
        layout: ShardLayout,
        slots: Sequence[Slot],
        *,
        shared: bool,
    ) -> None:
        self.layout = layout
        self.slots = slots
        self.held = frozenset(id(slot.parameter) for slot in slots)
        self._comm = comm
        self._shared = shared
        self._flat = [
            shared_zeros(comm, size, getattr(torch, dtype))
            if shared
            else comm.empty(size, getattr(torch, dtype)).zero_()
            for size, dtype in zip(layout.sizes, layout.dtypes, strict=True)
        ]
        self._gathering: list[pycomm.Work[Any]] = []
        self._left = False
        for slot, (bucket, offset, count) in zip(slots, layout.places, strict=True):
            view = self._flat[bucket][offset : offset + count].view(slot.parameter.shape)
            if comm.rank == 0 or not shared:
                view.copy_(slot.parameter.data)
            slot.parameter.data = view
        if shared:
            comm.barrier()
        self._hooks = [module.register_forward_pre_hook(self._before_module) for module in model.modules()]
        self._hooks.append(model.register_state_dict_pre_hook(self._before_state_dict))  # type: ignore[no-untyped-call]

    @property
    def nbytes(self) -> int:
        """What the flat buffers take: of those that are shared, this rank's share."""
        return sum(flat.nbytes for flat in self._flat) // (self._comm.size if self._shared else 1)

    def own(self, piece: Piece) -> Tensor:
        return self._flat[piece.bucket][piece.offset : piece.offset + piece.count]

    def before_step(self) -> None:
        if self._shared:
            self._comm.barrier()

    def after_step(self) -> None:
        """Starts to give everyone this rank's parts and to get the others'. Buckets come in the order in
        which a forward reads them."""
        if self._shared:
            self._gathering.append(self._comm.barrier_async())
        alone = self._shared or self.layout.ranks == 1  # then all ranks own all of it
        for bucket in () if alone else reversed(range(len(self._flat))):
            flat = self._flat[bucket]
            mine = flat[self.layout.part(bucket, self._comm.rank)]
            self._gathering.append(self._comm.all_gather_async(mine, out=flat))

    def wait(self) -> None:
        start = time.monotonic()
        while self._gathering:
            self._gathering.pop(0).wait()
        self.waited_s += time.monotonic() - start
        if self._left:
            self._part()

    def load(self, model: nn.Module, reader: SliceReader) -> None:
        if self._shared:  # nobody goes on before all have written, nor where one could not
            on_every_rank(self._comm, lambda: load_model(model, reader))
        else:
            load_model(model, reader)

    def restore(self) -> None:
        self.wait()

    def leave(self) -> None:
        """After an exception, parameters may be on their way: the hooks stay until they are there."""
        self._left = True
        if not self._gathering:
            self._part()
            self._unhook()

    def _part(self) -> None:
        """Parameters that ranks share become each one's own."""
        if self._shared:
            for slot in self.slots:
                slot.parameter.data = slot.parameter.data.clone()
        self._shared = False

    def _before_module(self, *_: object) -> None:
        if self._gathering:
            self.wait()
        if self._left:
            self._unhook()

    def _before_state_dict(self, *_: object) -> None:
        if self._gathering:
            self.wait()  # and no more: torch is iterating over the hooks

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
