"""Random numbers of a step, such as dropout's: a pure function of (seed, step, stream).

A stream is what draws for itself: a part of the batch, of which each rank has one, in exact mode several. No
generator's state is carried from step to step, so a run that is resumed draws what it would have drawn, and
none draws what another does.
"""

from __future__ import annotations

import threading

import numpy as np
import torch

# Ranks that are threads share the generators: who seeds one, and draws from it, holds this meanwhile.
SHARED = threading.Lock()


def begin(seed: int, step: int, stream: int) -> None:
    """Sets torch's generator for what `stream` computes in that step. Other generators are left alone."""
    drawn = np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)
    with SHARED:
        torch.default_generator.manual_seed(int(drawn[0] >> 1))
