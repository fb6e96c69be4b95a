"""Arrays of conformance cases on a torch device: what the calls get lies there, what tests fill and judge is
a mirror on the host."""

from __future__ import annotations

import numpy as np
import torch

from tests.conformance.cases import ITEM_BYTES, Case
from tests.conformance.oracle import Array
from tests.conformance.runner import MARGIN, UNTOUCHED, Memory

_TORCH = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "u8": torch.uint8,
    "i8": torch.int8,
}


class DeviceMemory(Memory):
    """`Memory` whose `array` is a tensor on `device`; `stored` stays NumPy's, and goes and comes once."""

    def __init__(self, device: str, dtype: str, count: int, shift: int, content: Array | None) -> None:
        super().__init__(np.empty, dtype, count, shift, content)
        start, size = 2 * MARGIN + shift, count * ITEM_BYTES[dtype]
        self._whole = torch.full((size + shift + 4 * MARGIN,), UNTOUCHED, dtype=torch.uint8, device=device)
        self._there = self._whole[start : start + size]
        self._edges = [self._whole[:start], self._whole[start + size :]]
        self._here = torch.from_numpy(self.stored.view(np.uint8))
        self._published = False
        self.array = self._there.view(_TORCH[dtype])

    def publish(self) -> None:
        if not self._published:
            self._there.copy_(self._here)
            self._published = True

    def refresh(self) -> None:
        self._here.copy_(self._there)

    def margins_changed(self) -> bool:
        return any(bool((edge != UNTOUCHED).any()) for edge in self._edges)


def placeable(case: Case) -> bool:
    """Whether torch has such a tensor: none begins within an element."""
    return case.placement.shift % ITEM_BYTES[case.kind.dtype] == 0
