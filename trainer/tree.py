"""Sums whose grouping is fixed: ((x0 + x1) + (x2 + x3)) + …, a tree over positions, whoever adds up what.

A rank has the values of consecutive positions, 2^k of them, and adds them up as they come, like a binary
counter: two sums of equally many values become one, so that at most k + 1 are held. What ranks then have are
the nodes of one level of the tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt
from torch import Tensor

Gradients = list[Tensor | None]


def tree_sum(values: npt.ArrayLike) -> float:
    """Of float64s; their number is filled up with zeros to a power of two."""
    row = np.asarray(values, np.float64)
    row = np.concatenate([row, np.zeros((1 << max(len(row) - 1, 0).bit_length()) - len(row))])
    with np.errstate(over="ignore", invalid="ignore"):  # inf and nan are results
        while len(row) > 1:
            row = row[0::2] + row[1::2]
    return float(row[0])


class GradientTree:
    """Adds up the gradients that backwards leave in `.grad`, of one after another. A parameter that none of
    them uses has no gradient; one that some use counts as zero in the others, as it does between ranks."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        self._held: list[tuple[int, Gradients]] = []  # sums of so many backwards each, ever fewer

    def take(self) -> None:
        """Takes the gradients of one backward, or of no samples: every `.grad` is None then."""
        count, gradients = 1, [parameter.grad for parameter in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        while self._held and self._held[-1][0] == count:
            _, earlier = self._held.pop()
            for index, gradient in enumerate(gradients):
                gradients[index] = _plus(earlier[index], gradient)
                earlier[index] = None  # its memory is free
            count *= 2
        self._held.append((count, gradients))

    @contextmanager
    def completed(self) -> Iterator[None]:
        """Within it, at most one backward, the last: every `.grad`, None before, gets the sum of all, as do
        hooks that wait for it. How many backwards that are is a power of two."""
        if not self._held:
            yield
            return
        seen: set[int] = set()

        def sum_up(index: int, gradient: Tensor) -> Tensor | None:
            seen.add(index)
            return self._with_held(index, gradient)

        handles = [
            parameter.register_hook(partial(sum_up, index))  # type: ignore[no-untyped-call]
            for index, parameter in enumerate(self._parameters)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for index, parameter in enumerate(self._parameters):
            if index not in seen:
                parameter.grad = self._with_held(index, None)
        self._held.clear()

    def _with_held(self, index: int, gradient: Tensor | None) -> Tensor | None:
        for _, gradients in reversed(self._held):
            gradient = _plus(gradients[index], gradient)
            gradients[index] = None
        return gradient


def _plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        present = other if one is None else one
        return None if present is None else present + 0.0  # as if zeros were there: -0 becomes 0
    return one + other
