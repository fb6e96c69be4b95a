"""The norm of all gradients, and gradients scaled down to a norm (Pascanu et al., "On the difficulty of
training recurrent neural networks", ICML 2013)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

STABILITY = 1e-6  # torch.nn.utils.clip_grad_norm_'s


def clip(
    gradients: Iterable[Tensor],
    max_norm: float,
    over_ranks: Callable[[float], float] = lambda squares: squares,
) -> float:
    """Scales gradients in place so that their common norm is at most `max_norm`; returns what it was.

    `over_ranks`: from this rank's sum of squares to that of all elements, once each, the same on all ranks.
    A norm that is not finite changes nothing.
    """
    held = list(gradients)
    norms = [torch.linalg.vector_norm(part, dtype=torch.float64).item() for part in held]
    norm = math.sqrt(
        over_ranks(sum((part * part for part in norms), 0.0))
    )  # not **, which raises OverflowError
    if math.isfinite(norm) and norm > max_norm:
        for part in held:
            part.mul_(max_norm / (norm + STABILITY))
    return norm
