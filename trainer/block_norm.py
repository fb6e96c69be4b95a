"""Sums of squares that do not depend on how parameters are cut and shared out: for exact mode (exact.py).

Every parameter is a row of blocks of BLOCK elements. Squares are added up in float64, as a tree over the
elements of a block and one over the blocks of all parameters. Cuts lie between blocks, so a block is one
rank's. A square of a float32 is exact in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.exact import BLOCK
from trainer.layout import Piece
from trainer.tree import tree_sum

Sums = npt.NDArray[np.float64]
CHUNK = 256  # blocks at a time: what they take in float64 fits a cache


class BlockNorm:
    """`counts`: of the elements of each parameter, all ranks' the same. `pieces`: what this rank has of them.
    `over_ranks`: the sum of all ranks' arrays, of which at each place at most one has another number than 0.
    """

    def __init__(
        self, counts: Sequence[int], pieces: Sequence[Piece], over_ranks: Callable[[Sums], Sums]
    ) -> None:
        blocks = [-(-count // BLOCK) for count in counts]
        self._first = [0, *accumulate(blocks)]
        self._pieces = pieces
        self._over_ranks = over_ranks

    def squares(self, gradients: Sequence[Tensor | None]) -> float:
        """Of all ranks' gradients; `gradients` are this rank's, by piece. Collective if `over_ranks` is."""
        sums = np.zeros(self._first[-1])
        for piece, gradient in zip(self._pieces, gradients, strict=True):
            if gradient is not None:
                first = self._first[piece.slot] + piece.start // BLOCK
                own = block_squares(gradient)
                sums[first : first + len(own)] = own
        return tree_sum(self._over_ranks(sums))


def block_squares(gradient: Tensor) -> Sums:
    """By block of a one-dimensional tensor, the last of which may be shorter."""
    found = []
    for start in range(0, len(gradient), CHUNK * BLOCK):
        chunk = gradient[start : start + CHUNK * BLOCK]
        squares = torch.zeros(-(-len(chunk) // BLOCK) * BLOCK, dtype=torch.float64)
        torch.square(chunk.double(), out=squares[: len(chunk)])
        rows = squares.view(-1, BLOCK)
        while rows.shape[1] > 1:
            half = rows.shape[1] // 2
            rows = rows[:, :half] + rows[:, half:]
        found.append(rows[:, 0].numpy())
    return np.concatenate(found)
