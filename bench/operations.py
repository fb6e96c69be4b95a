"""The collectives under test: what their buffers hold, what the result must be, and what a time is worth.

Inputs are small whole numbers whose results are exact in every dtype, order and codec (the idea of
nccl-tests' verifiable inputs), so a result is right or wrong without a tolerance. They come from a *tile* of
a prime number of elements, repeated: no chunk can stand in for another, and filling reads the cache and
writes the buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.errors import BenchError

Array = npt.NDArray[Any]

TILE = 16381  # elements
ROOT = 0
DTYPES = ("float32", "float64", "float16", "int64", "int32", "uint8", "int8")
REDUCTIONS: dict[str, Any] = {"sum": np.add, "prod": np.multiply, "min": np.minimum, "max": np.maximum}


@dataclass(frozen=True)
class Operation:
    """One collective. S is the size of the whole vector in bytes, as in nccl-tests; n the number of ranks."""

    name: str
    busbw: Callable[[int], float]  # of n: bus bandwidth by algorithm bandwidth S/t
    traffic: Callable[[int], float]  # of n: memory traffic of all ranks together by S, at the least
    crossing: Callable[
        [int, int], float
    ]  # of h nodes and n: what a node's link carries each way by S, so too
    divided: bool = False  # into equal parts, one for each rank
    reduces: bool = False
    sized: bool = True  # False: it moves no vector, S is 0

    def busbw_factor(self, size: int) -> float:
        """0 for a single rank, which has no bus."""
        return self.busbw(size) if size > 1 else 0.0

    def count(self, size_bytes: int, itemsize: int, size: int) -> int:
        """Elements of the whole vector for a wanted size: at least one, and equal parts."""
        if not self.sized:
            return 0
        parts = size if self.divided else 1
        return max(1, size_bytes // itemsize // parts) * parts


# Over a node's link, of h nodes and n ranks.
ALL = lambda h, n: 1.0  # noqa: E731
OTHERS = lambda h, n: (h - 1) / h  # noqa: E731  the parts of the other nodes
TWICE_OTHERS = lambda h, n: 2 * (h - 1) / h  # noqa: E731
EACH_TO_OTHERS = lambda h, n: n / h * (h - 1) / h  # noqa: E731

OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("all_reduce", lambda n: 2 * (n - 1) / n, lambda n: 2 * n, TWICE_OTHERS, reduces=True),
        Operation(
            "reduce_scatter", lambda n: (n - 1) / n, lambda n: n + 1, OTHERS, divided=True, reduces=True
        ),
        Operation("all_gather", lambda n: (n - 1) / n, lambda n: n + 1, OTHERS, divided=True),
        Operation("broadcast", lambda n: 1.0, lambda n: n, ALL),
        Operation("reduce", lambda n: 1.0, lambda n: n + 1, ALL, reduces=True),
        Operation("gather", lambda n: (n - 1) / n, lambda n: 2, OTHERS, divided=True),
        Operation("scatter", lambda n: (n - 1) / n, lambda n: 2, OTHERS, divided=True),
        Operation("all_to_all", lambda n: (n - 1) / n, lambda n: 2 * n, EACH_TO_OTHERS, divided=True),
        Operation("barrier", lambda n: 0.0, lambda n: 0.0, lambda h, n: 0.0, sized=False),
    )
}


def operation(name: str) -> Operation:
    if name not in OPERATIONS:
        raise BenchError(f"no operation {name!r}; there is {', '.join(OPERATIONS)}")
    return OPERATIONS[name]


class Case:
    """One rank's buffers for one collective of one size.

    all_reduce, reduce and broadcast work in place, in `input`; the others go from `input` to `output`. Where
    a rank gives or gets nothing the buffer is empty. `empty(count, dtype)` allocates.
    """

    def __init__(
        self,
        operation: Operation,
        count: int,
        dtype: str,
        redop: str,
        rank: int,
        size: int,
        empty: Callable[[int, str], Array] = np.empty,
    ) -> None:
        self.operation = operation
        self.count = count
        self.size_bytes = count * np.dtype(dtype).itemsize
        self.redop = redop
        self.rank = rank
        self.size = size
        given, got = self._counts()
        self.input = empty(given, dtype)
        self.output = self.input if got is None else empty(got, dtype)
        tile = tiles(redop if operation.reduces else "sum", dtype, size)
        self._mine = tile[rank]
        self._expected = list(self._expectation(tile))

    def _counts(self) -> tuple[int, int | None]:
        """Elements of input and output; None: the input is the output."""
        whole, part = self.count, self.count // self.size
        at_root = self.rank == ROOT
        counts: dict[str, tuple[int, int | None]] = {
            "reduce_scatter": (whole, part),
            "all_gather": (part, whole),
            "gather": (part, whole if at_root else 0),
            "scatter": (whole if at_root else 0, part),
            "all_to_all": (whole, whole),
        }
        return counts.get(self.operation.name, (whole, None))

    def _expectation(self, tile: list[Array]) -> Iterator[tuple[int, int, Array]]:
        """What the output must hold: (from where, how many elements, of which tile)."""
        name, part, reduced = self.operation.name, self.count // self.size, tile[self.size]
        if name in ("reduce", "gather") and self.rank != ROOT:
            return
        if name in ("all_gather", "gather"):
            yield from ((r * part, part, tile[r]) for r in range(self.size))
        elif name == "all_to_all":
            yield from ((r * part, part, self._part_of(tile[r])) for r in range(self.size))
        elif name in ("reduce_scatter", "scatter"):
            yield 0, part, self._part_of(reduced if name == "reduce_scatter" else tile[ROOT])
        else:
            yield 0, self.count, reduced if self.operation.reduces else tile[ROOT]

    def _part_of(self, tile: Array) -> Array:
        """The tile of this rank's part of a vector that repeats a tile."""
        return np.roll(tile, -(self.rank * (self.count // self.size) % TILE))

    def rewrite(self) -> None:
        """Rewrites every buffer of the call: inputs with their values, the rest with what no result holds."""
        if self.output is not self.input:
            self.output.view(np.uint8).fill(0xFF)
        if self.operation.name == "broadcast" and self.rank != ROOT:
            self.input.view(np.uint8).fill(0xFF)
        else:
            fill(self.input, self._mine)

    def wrong(self) -> int:
        """How many elements of this rank's result are not what they must be."""
        return sum(
            mismatches(self.output[start : start + count], tile) for start, count, tile in self._expected
        )


@cache
def tiles(redop: str, dtype: str, size: int) -> list[Array]:
    """By rank, its values; last, the values reduced over all ranks.

    Sums stay below 128, which every dtype holds, up to 127 ranks; beyond, they are of zeros and ones.
    """
    draw = np.random.default_rng(0)
    if redop == "prod":
        twos = draw.integers(0, 2, TILE) * (1 + draw.integers(0, size, TILE))
        rows = [np.where(twos == r + 1, 2, 1) for r in range(size)]
    else:
        top = max(2, min(8, 127 // size + 1)) if redop == "sum" else 100
        rows = [draw.integers(0, top, TILE) for _ in range(size)]
    return [row.astype(dtype) for row in (*rows, REDUCTIONS[redop].reduce(rows))]


def fill(buffer: Array, tile: Array) -> None:
    """Repeats the tile over the buffer."""
    whole = len(buffer) // TILE * TILE
    buffer[:whole].reshape(-1, TILE)[:] = tile
    buffer[whole:] = tile[: len(buffer) - whole]


def mismatches(buffer: Array, tile: Array) -> int:
    """How many elements differ from the tile repeated; NaN differs from everything."""
    whole = len(buffer) // TILE * TILE
    head = np.count_nonzero(buffer[:whole].reshape(-1, TILE) != tile)
    return int(head + np.count_nonzero(buffer[whole:] != tile[: len(buffer) - whole]))
