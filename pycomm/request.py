"""A call as the methods of a communicator make it and the engine takes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pycomm import _core
from pycomm.errors import InvalidArgument
from pycomm.tensors import as_memory

Counts = Sequence[int]

_new_tuple = tuple.__new__


class Request(NamedTuple):
    """A call, in the order of the engine's arguments."""

    collective: str
    x: Any
    out: Any
    op: str
    root: int
    scale: float
    codec: str
    algorithm: str | _core.OwnAlgorithm
    timeout_s: float
    counts: list[int] | None
    received: list[int] | None
    order: str


def request(
    collective: str,
    x: Any,
    out: Any = None,
    op: str = "sum",
    root: int = 0,
    scale: float = 1.0,
    codec: str | None = None,
    algorithm: str | None = None,
    timeout: float | None = None,
    counts: list[int] | None = None,
    received: list[int] | None = None,
    order: str = "any",
) -> Request:
    """A request with what is left out filled in. Raises InvalidArgument for a timeout that is none."""
    fields = (
        collective,
        x if type(x) is np.ndarray else as_memory(x),
        out if out is None else as_memory(out),
        op,
        root,
        scale,
        codec or "",
        algorithm or "",
        0.0 if timeout is None else checked_timeout(timeout),
        counts,
        received,
        order,
    )
    return _new_tuple(Request, fields)  # half the time of Request(...)


def part_sizes(counts: Counts | None, name: str, size: int) -> list[int] | None:
    """`counts` as a list; raises InvalidArgument unless it has a whole number for each of `size` ranks."""
    if counts is None:
        return None
    try:
        sizes = [int(count) for count in counts if count == int(count) and count >= 0]
        if len(sizes) == len(counts) == size:
            return sizes
    except (TypeError, ValueError):
        pass
    raise InvalidArgument(
        f"{name} is {counts!r}; expected {size} whole numbers, 0 or more, one for each rank"
    )


def checked_timeout(timeout: float | None) -> float:
    """Seconds for the engine, 0 for None. Raises InvalidArgument for what is no time."""
    if timeout is None:
        return 0.0
    if not isinstance(timeout, (int, float)) or not timeout > 0:
        raise InvalidArgument(f"timeout is {timeout!r}; expected seconds above 0, or None")
    return timeout
