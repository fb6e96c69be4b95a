"""Implementations of collectives that can be timed, each registered by its own file in this folder.

    @IMPLEMENTATIONS.register("mine")
    class Mine(Implementation):
        def all_reduce(self, case: Case) -> Call: ...    # one method for each operation that it has

On the command line an implementation is `name`, or `name:option+option` (`pycomm:ring+fp16`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bench.errors import BenchError
from bench.operations import Array, Case
from bench.ranks import Ranks
from trainer.registry import Registry

Call = Callable[[], object]


class UnsupportedError(Exception):
    """An implementation lacks an operation, dtype or reduction; the message says which and why."""


class Implementation:
    """One library's collectives. All methods are collective: every rank makes the same calls.

    A method named as an operation gets a case and returns the function that makes that call once, blocking,
    on the case's buffers; it prepares what a user would prepare once. It raises UnsupportedError for what the
    library lacks.
    """

    def __init__(self, options: Sequence[str], ranks: Ranks) -> None:
        if options:
            raise BenchError(f"{type(self).__name__.lower()} takes no options, got {' '.join(options)}")
        self.ranks = ranks

    def empty(self, count: int, dtype: str) -> Array:
        """Memory for a case."""
        return np.empty(count, dtype)

    def bind(self, case: Case) -> Call:
        """The function that makes the call of this case once. Raises UnsupportedError."""
        method: Callable[[Case], Call] | None = getattr(self, case.operation.name, None)
        if method is None:
            raise UnsupportedError(f"has no {case.operation.name}")
        return method(case)

    def close(self) -> None:
        """Gives back what the constructor took."""


IMPLEMENTATIONS: Registry[Implementation] = Registry("implementation", "bench.implementations")
