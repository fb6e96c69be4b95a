"""Small values that all ranks tell each other, of whatever length."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from pycomm.communicator import Communicator


def exchange(comm: Communicator, value: Any, timeout: float | None = None) -> list[Any]:
    """Every rank's value, by rank. Collective; blocks. Values are what JSON can hold, the text of others."""
    words = np.frombuffer(json.dumps(value, default=str).encode(), np.uint8)
    sizes = comm.all_gather(np.array([words.size]), timeout=timeout)
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: words.size] = words
    rows = comm.all_gather(padded, timeout=timeout).reshape(comm.size, -1)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
