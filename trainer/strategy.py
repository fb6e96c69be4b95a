"""The seam between the training loop and whoever decides where and when parameters are updated.

A strategy registers a factory under a name, from a file in trainer/strategies or from anywhere that is
imported:

    @STRATEGIES.register("mine")
    def mine(model, comm, optimizer, wire, **options) -> Strategy: ...

The loop in train.py calls, for every step:

    strategy.before_forward(batch)      # parameters are valid when it returns
    ... forward and backward of the sum of this rank's losses, neither if the rank has no sample ...
    strategy.step()                     # gradients combined, parameters updated (or on their way)

and `bucket_ready(k)` comes from within backward when the gradients of bucket k are in place, if the
strategy has buckets (gradients.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from trainer.registry import Registry
from trainer.sampler import Batch

Overlap = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Wire:
    """How gradients travel, for strategies that send some."""

    codec: str = "none"
    overlap: Overlap = "auto"
    bucket_bytes: int = 25 << 20


class Strategy(ABC):
    """One rank's side of a strategy. Calls come from the training thread, in the same order on all ranks."""

    # Seconds of the last step() that were spent waiting for other ranks' data.
    exposed_s: float = 0.0

    def before_forward(self, batch: Batch | None) -> None:  # noqa: B027
        """Blocks until the parameters may be read. `batch` is None before an evaluation."""

    def bucket_ready(self, bucket: int) -> None:  # noqa: B027
        """This rank's gradients of `bucket` are in place. Buckets come in order; must not block."""

    @abstractmethod
    def step(self) -> None:
        """Combines gradients, or parameters, of all ranks and updates the parameters."""

    def close(self) -> None:  # noqa: B027
        """Ends training without an error: all ranks then hold the same parameters. May communicate."""


STRATEGIES: Registry[Strategy] = Registry("strategy", "trainer.strategies")
