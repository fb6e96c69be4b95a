"""Which reductions of torch's the engine does, and what is done about the others.

The engine adds, multiplies and compares eight dtypes. Complex sums are sums of twice as many real numbers;
booleans are bytes of 0 and 1, whose maximum is "or" and whose minimum is "and". What is left (bitwise
operators, integers of 16 bits) is rare: everyone's values are gathered and
reduced by torch in order of rank, at N times the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ReduceOp

from pycomm.errors import InvalidArgument

NATIVE = frozenset(
    {
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.int8,
    }
)

# ReduceOp compares equal to its members but hashes unlike them, so these are looked through by `==`.
_NAMES = [
    (ReduceOp.SUM, "sum"),
    (ReduceOp.AVG, "avg"),
    (ReduceOp.PRODUCT, "prod"),
    (ReduceOp.MIN, "min"),
    (ReduceOp.MAX, "max"),
    (ReduceOp.BAND, "band"),
    (ReduceOp.BOR, "bor"),
    (ReduceOp.BXOR, "bxor"),
    (ReduceOp.PREMUL_SUM, "premul_sum"),
]
_OF_BOOLEANS = {"sum": "max", "max": "max", "bor": "max", "prod": "min", "min": "min", "band": "min"}
_FOLDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "avg": torch.add,
    "prod": torch.mul,
    "min": torch.minimum,
    "max": torch.maximum,
    "band": torch.bitwise_and,
    "bor": torch.bitwise_or,
    "bxor": torch.bitwise_xor,
}


@dataclass(frozen=True)
class Reduction:
    """A reduction as the engine takes it, or else as a fold of everyone's values."""

    op: str  # the engine's, or a name in _FOLDS
    scale: float = 1.0
    view: torch.dtype | None = None  # in which dtype the engine sees the elements; None: it does not
    ratio: int = 1  # elements of that dtype per element

    @property
    def native(self) -> bool:
        return self.view is not None

    def seen(self, dense: Tensor) -> Tensor:
        """The elements of a contiguous tensor, flat, as the engine sees them. Shares memory."""
        flat = dense.reshape(-1)
        if self.ratio == 2:
            return torch.view_as_real(flat).reshape(-1)
        return flat.view(self.view) if self.view is not None and flat.dtype != self.view else flat

    def fold(self, rows: Tensor) -> Tensor:
        """The reduction of `rows` (ranks, count) over the first dim, in order of rank."""
        total = rows[0].clone()
        for row in rows[1:]:
            total = _FOLDS[self.op](total, row)
        if self.op == "avg":
            total = torch.div(total, len(rows), rounding_mode="trunc")
        return total


def reduction_of(op: Any, dtype: torch.dtype) -> Reduction:
    """What `op`, a ReduceOp, means for elements of that dtype. Raises InvalidArgument where it has no
    meaning."""
    name = next((name for known, name in _NAMES if op == known), None)
    if name is None:
        raise InvalidArgument(f"reduce op {op}; expected one of {', '.join(name for _, name in _NAMES)}")
    bitwise = name in ("band", "bor", "bxor")
    if dtype is torch.bool:
        if name in _OF_BOOLEANS:
            return Reduction(_OF_BOOLEANS[name], view=torch.uint8)
        if name == "bxor":
            return Reduction(name)
        raise InvalidArgument(f"{name} of booleans has no meaning")
    if bitwise and (dtype.is_floating_point or dtype.is_complex):
        raise InvalidArgument(f"{name} of {dtype}: bitwise operators are for integers and booleans")
    if name == "premul_sum":
        return _premultiplied(op, dtype)
    if dtype.is_complex:
        if name not in ("sum", "avg") or dtype.to_real() not in NATIVE:
            raise InvalidArgument(f"{name} of {dtype}; expected sum or avg of complex numbers")
        return Reduction(name, view=dtype.to_real(), ratio=2)
    if bitwise or dtype not in NATIVE:
        return _checked(Reduction(name), dtype)
    return Reduction(name, view=dtype)


def _checked(reduction: Reduction, dtype: torch.dtype) -> Reduction:
    """Raises InvalidArgument where torch cannot fold that dtype: before anything is gathered."""
    try:
        reduction.fold(torch.empty(2, 0, dtype=dtype))
    except (RuntimeError, NotImplementedError) as error:
        raise InvalidArgument(f"{reduction.op} of {dtype}: {error}") from None
    return reduction


def _premultiplied(op: Any, dtype: torch.dtype) -> Reduction:
    factor = op.__getstate__()[1]
    if isinstance(factor, Tensor):
        factor = factor.item()
    real = dtype.to_real() if dtype.is_complex else dtype
    if real not in NATIVE or not real.is_floating_point:
        raise InvalidArgument(
            f"premul_sum of {dtype}: expected a floating or complex dtype of 16 bits or more"
        )
    return Reduction("sum", float(factor), real, 2 if dtype.is_complex else 1)
