"""The norm of all gradients, and gradients scaled down to a norm (Pascanu et al., "On the difficulty of
training recurrent neural networks", ICML 2013)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

STABILITY = 1e-6  # torch.nn.utils.clip_grad_norm_'s


def sum_of_squares(gradients: Iterable[Tensor]) -> float:
    """Of all their elements, in float64; inf where it overflows."""
    norms = [torch.linalg.vector_norm(part, dtype=torch.float64).item() for part in gradients]
    return sum((norm * norm for norm in norms), 0.0)  # not **, which raises OverflowError


def clip(
    gradients: Iterable[Tensor],
    max_norm: float,
    squares: Callable[[Sequence[Tensor]], float] = sum_of_squares,
) -> float:
    """Scales gradients in place so that their common norm is at most `max_norm`; returns what it was.

    `squares`: from this rank's gradients to the sum of squares of all ranks', each element counted once; the
    same on all ranks. A norm that is not finite changes nothing.
    """
    held = list(gradients)
    norm = math.sqrt(squares(held))
    if math.isfinite(norm) and norm > max_norm:
        for part in held:
            part.mul_(max_norm / (norm + STABILITY))
    return norm
