"""The order in which all ranks gather blocks of parameters, agreed at the start of each pass (ZeRO-3).

Collectives have to come in the same order on all ranks, while what a rank computes may differ: it may have no
sample in this step, more batches to evaluate, or take another branch. So every pass (a forward, a backward)
begins with one small all-gather, in which each rank says what it is about to do and in which order it used
the blocks the last time it did so. What the pass gathers, and in which order, follows from these words alone:
what the lowest rank with a wish wants, its order first, then what others used besides. A rank that wishes
something else takes part without using the parameters, and then asks again; one that needs a block that the
pass has no more takes part in the rest of it, and asks for that block alone. So an order that changes costs
time, never a hang, and the next pass has it. A rank that has nothing to do says so until all do.

Within a pass the next block is on its way while one is used.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

import pycomm
from pycomm import Communicator
from trainer.pages import Pages

DONE, FORWARD, BACKWARD, WHOLE, ALONE = range(5)  # ALONE + i: block i and nothing else
REPEATS = 4  # how often the blocks of an order may come again


class Block:
    """Parameters that are gathered together, always at the same addresses: autograd's saved tensors point
    there, so a backward finds what was freed after its forward.

    While it is free its parameters are not-a-number, so that who reads them sees it. `shards`: this rank's
    part of each of its flat buffers, in memory that peers address.
    """

    def __init__(self, comm: Communicator, index: int, name: str) -> None:
        self.index = index
        self.name = name
        self.held = False
        self.shards: list[Tensor] = []
        self._comm = comm
        self._pages: list[Pages] = []
        self._parameters: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        self._coming: list[list[pycomm.Work[Tensor]]] = []  # gathers that nobody waited for

    @property
    def coming(self) -> bool:
        """Whether a gather is on its way, which then is not to be lost."""
        return bool(self._coming)

    @property
    def nbytes(self) -> int:
        """What it takes while it is gathered."""
        return sum(pages.tensor.nbytes for pages in self._pages)

    def add(self, size: int, part: slice, parameters: Sequence[tuple[nn.Parameter, int]]) -> Tensor:
        """Moves parameters of one dtype into a flat buffer of `size` elements, from the offsets given, of
        which this rank keeps `part`; returns that. The parameters are free afterwards."""
        dtype = parameters[0][0].dtype
        pages = Pages(size, dtype)
        for parameter, offset in parameters:
            whole = pages.tensor[offset : offset + parameter.numel()].view(parameter.shape)
            whole.copy_(parameter.data)
            nothing = torch.full((), float("nan"), dtype=dtype).expand(parameter.shape)
            parameter.data = nothing
            self._parameters.append((parameter, whole, nothing))
        shard: Tensor = self._comm.empty(part.stop - part.start, dtype)
        shard.copy_(pages.tensor[part])
        pages.release()
        self.shards.append(shard)
        self._pages.append(pages)
        return shard

    def start(self) -> None:
        """Starts to gather; does not block."""
        buffers = zip(self.shards, self._pages, strict=True)
        self._coming.append(
            [self._comm.all_gather_async(shard, out=pages.tensor) for shard, pages in buffers]
        )

    def wait(self) -> None:
        """Blocks until what was started first is there."""
        for work in self._coming[0]:
            work.wait()
        del self._coming[0]  # not before: an interrupted wait is waited for again

    def hold(self) -> None:
        """The parameters may be read."""
        self.held = True
        for parameter, whole, _ in self._parameters:
            parameter.data = whole

    def free(self) -> None:
        """The parameters may not be read. The memory stays if a gather is on its way."""
        self.held = False
        for parameter, _, nothing in self._parameters:
            parameter.data = nothing
        for pages in () if self._coming else self._pages:
            pages.release()

    def keep_changes(self, parts: Sequence[slice]) -> None:
        """This rank's parts take what is in the parameters."""
        for shard, pages, part in zip(self.shards, self._pages, parts, strict=True):
            shard.copy_(pages.tensor[part])

    def leave(self) -> None:
        """Each parameter, which is held, has memory of its own from now on."""
        for parameter, whole, _ in self._parameters:
            parameter.data = whole.clone()
        self._parameters.clear()

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter, _, _ in self._parameters]


class Gathering:
    """One rank's side. All calls come from the training thread. `waited_s`: how long they blocked.

    `comm` is used for nothing else, so that gathers have an order of their own.
    """

    def __init__(self, comm: Communicator, blocks: Sequence[Block]) -> None:
        self._comm = comm
        self._blocks = blocks
        self._orders: dict[int, list[int]] = {FORWARD: [], BACKWARD: []}  # of the last pass of that kind
        self._order: list[int] = []
        self._asked: tuple[int, pycomm.Work[Tensor]] | None = None
        # What the pass gathers; up to where that is used or passed by; up to where it is started.
        self._sequence: list[int] = []
        self._position = 0
        self._started = 0
        self._resident: set[int] = set()
        self.most_nbytes = 0
        self.waited_s = 0.0

    def begin(self, kind: int) -> None:
        """Ends the pass that is open, and blocks until all ranks have come to one of this kind."""
        self.drain()
        if kind in self._orders:
            self._order = []
        while True:
            asked, words = self._words(kind)
            chosen, self._sequence = self._decided(words)
            self._position = self._started = 0
            if asked == kind == chosen:
                break
            self.drain()
        if kind in self._orders:
            self._orders[kind] = self._order

    def need(self, block: Block) -> None:
        """Blocks until the block is there, and holds it; starts to gather the one that comes next."""
        if block.held:
            return
        if block.index not in self._sequence[self._position :]:
            self.begin(ALONE + block.index)
        self._pass_by(self._sequence.index(block.index, self._position))
        self._start(self._position)
        if self._position + 1 < len(self._sequence):
            self._start(self._position + 1)
        self._wait(block)
        self._position += 1
        block.hold()
        self._order.append(block.index)

    def free(self, block: Block) -> None:
        """The block is no longer used."""
        block.free()
        if not block.coming:
            self._resident.discard(block.index)

    def let_go(self) -> None:
        """No block is used any more."""
        for block in self._blocks:
            if block.held:
                self.free(block)

    def drain(self) -> None:
        """Takes part in what the pass still gathers, without using it. Blocks."""
        self._pass_by(len(self._sequence))

    def _pass_by(self, until: int) -> None:
        while self._position < until:
            self._start(self._position)
            block = self._blocks[self._sequence[self._position]]
            self._wait(block)
            self._position += 1
            if not block.held:
                self.free(block)

    def _start(self, position: int) -> None:
        if position < self._started:
            return
        self._started = position + 1
        block = self._blocks[self._sequence[position]]
        block.start()
        self._resident.add(block.index)
        self.most_nbytes = max(self.most_nbytes, sum(self._blocks[i].nbytes for i in self._resident))

    def _wait(self, block: Block) -> None:
        start = time.monotonic()
        block.wait()
        self.waited_s += time.monotonic() - start

    def _words(self, kind: int) -> tuple[int, list[list[int]]]:
        """What this rank asked for, and the words of all ranks: what each wants, then the order it knows."""
        if self._asked is None:
            capacity = REPEATS * len(self._blocks)
            word = np.full(1 + capacity, -1, np.int32)
            order = self._known(kind)[:capacity]
            word[0] = kind
            word[1 : 1 + len(order)] = order
            self._asked = kind, self._comm.all_gather_async(torch.from_numpy(word))
        asked, work = self._asked  # an earlier question, if its answer was interrupted
        start = time.monotonic()
        words = work.wait().view(self._comm.size, -1).tolist()
        self.waited_s += time.monotonic() - start
        self._asked = None
        return asked, [[word[0], *(index for index in word[1:] if index >= 0)] for word in words]

    def _known(self, kind: int) -> list[int]:
        if kind == BACKWARD and not self._orders[BACKWARD]:
            return [index for index in self._orders[FORWARD][::-1] if index]  # the root is held
        return self._orders.get(kind, [])

    def _decided(self, words: Sequence[Sequence[int]]) -> tuple[int, list[int]]:
        """A function of the words alone, so that all ranks decide the same."""
        chosen = next((kind for kind, *_ in words if kind != DONE), DONE)
        everything = list(range(len(self._blocks)))
        if chosen == DONE:
            return chosen, []
        if chosen >= ALONE:
            return chosen, [chosen - ALONE]
        if chosen == WHOLE:
            return chosen, everything
        sequence: list[int] = []
        for kind, *order in words:
            if kind == chosen:
                sequence += [index for index in order if index not in sequence] if sequence else order
        return chosen, sequence or (everything if chosen == FORWARD else everything[:0:-1])
