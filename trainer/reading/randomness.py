"""Random numbers of samples, such as an augmentation's: a pure function of the words that they are seeded
with, (seed, epoch, index) of a sample, and so of neither the number of ranks nor of workers.

While samples are read, torch's, NumPy's and Python's global generators draw for them alone; afterwards they
are what they were. That takes about 80 µs for each batch, and 15 for each sample.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from trainer.reading.threads import one_thread
from trainer.streams import SHARED


@contextmanager
def aside() -> Iterator[None]:
    """Within it the generators may be seeded and drawn from; afterwards they are what they were. There is one
    compute thread, as a worker has."""
    with _alone(), one_thread():
        others = _states()
        try:
            yield
        finally:
            _restore(others)


def seed(*words: int) -> None:
    """To be called aside."""
    drawn = np.random.SeedSequence(words).generate_state(4, np.uint32)
    torch.default_generator.manual_seed(int(drawn[0]) << 31 | int(drawn[1]) >> 1)
    np.random.seed(drawn[2])
    random.seed(int(drawn[3]))


class Draws:
    """Generators of one's own: `with draws.drawing():` goes on where it ended the last time."""

    def __init__(self, *words: int) -> None:
        self._words = words
        self._states: tuple[Any, ...] | None = None

    @contextmanager
    def drawing(self) -> Iterator[None]:
        with aside():
            if self._states is None:
                seed(*self._words)
            else:
                _restore(self._states)
            yield
            self._states = _states()


def _alone() -> AbstractContextManager[Any]:
    """A worker has no other rank beside it, and may have been forked while another rank held the lock."""
    return SHARED if get_worker_info() is None else nullcontext()


def _states() -> tuple[Any, ...]:
    return torch.default_generator.get_state(), np.random.get_state(), random.getstate()


def _restore(states: tuple[Any, ...]) -> None:
    torch.default_generator.set_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])
