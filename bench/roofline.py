"""The limit that memory sets: how fast all ranks together rewrite buffers of the same size in place.

Rewriting S bytes in place reads and writes each once, so n ranks move 2nS. A collective must move at least
its `traffic(n)` times S; at this bandwidth that takes the roofline's time. Below about 1 MB the number says
more about NumPy's call than about memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.operations import Operation
from bench.ranks import Times
from bench.timing import Contender, percentiles

NAME = "roofline"


def contender(size_bytes: int) -> Contender:
    """Inverts the bits of a buffer of this rank's own."""
    words = np.empty(max(1, size_bytes // 8), np.uint64)
    return Contender(NAME, lambda: np.invert(words, out=words), lambda: words.fill(1))


def row(operation: Operation, size: int, size_bytes: int, times: Times) -> dict[str, Any]:
    """The bandwidth of all ranks, and the collective's least time at it."""
    rewriting = percentiles(times, 1e-6)
    moved = 2 * size * size_bytes
    share = operation.traffic(size) * size_bytes / moved
    return {
        "op": operation.name,
        "bytes": size_bytes,
        "bandwidth_gbps": moved / rewriting["p50"] / 1e3,
        "time_us": {name: share * value for name, value in rewriting.items()},
    }
