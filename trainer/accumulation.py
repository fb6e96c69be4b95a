"""Gradients of several micro-batches added up where they are sharded: in this rank's part of each bucket.

Under ZeRO-2 no rank has room for whole gradients, so every micro-batch's are reduce-scattered, and the parts
are added (as DeepSpeed does): K micro-batches send K times the bytes of one, and take one more part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class PartSums:
    """`parts`: where each round's reduced gradients end, of `slots` slots. 16-bit parts are added up in
    float32 and rounded once. Has no memory until something is added."""

    def __init__(self, parts: Sequence[Tensor], slots: int) -> None:
        self._parts = parts
        self._sums: list[Tensor] = []
        self._used = self._none = [False] * slots

    @property
    def nbytes(self) -> int:
        return sum(total.nbytes for total in self._sums)

    def add(self, used: Sequence[bool]) -> None:
        """Adds the parts of a round; `used`: by slot, whether any rank had a gradient."""
        if not self._sums:
            self._sums = [
                part.to(torch.promote_types(part.dtype, torch.float32), copy=True) for part in self._parts
            ]
        else:
            for total, part in zip(self._sums, self._parts, strict=True):
                total.add_(part)
        self._used = [one or other for one, other in zip(self._used, used, strict=True)]

    def complete(self, used: Sequence[bool]) -> list[bool]:
        """The same with the last round: the parts are then the sums of all. Returns the slots used in any."""
        if self._sums:
            self.add(used)
            for total, part in zip(self._sums, self._parts, strict=True):
                part.copy_(total)
            used = self._used
        self.drop()
        return list(used)

    def drop(self) -> None:
        """Forgets what was added."""
        self._sums = []
        self._used = self._none
