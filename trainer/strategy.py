"""The seam between the training loop and whoever decides where and when parameters are updated.

A strategy registers a factory under a name, from a file in trainer/strategies or from anywhere that is
imported:

    @STRATEGIES.register("mine")
    def mine(model, comm, optimizer, wire, **options) -> Strategy: ...

The loop in train.py calls, for every step:

    strategy.before_forward(batch)      # parameters are valid when it returns
    ... forward, then strategy.loss(sum of this rank's losses, batch).backward(); neither without a sample;
        of several micro-batches all but the last in strategy.no_sync() ...
    strategy.synchronize()              # gradients are combined if the strategy does that, and may be read
    strategy.clip_grad_norm_(max_norm)  # if it was asked for
    strategy.step()                     # parameters are updated (or on their way)

and `bucket_ready(k)` comes from within backward when the gradients of bucket k are in place, if the
strategy has buckets (gradients.py).

Around an evaluation it calls before_forward(None) and after_forward(). Between two steps a strategy whose
runs can be saved is asked for its slices of parameters and optimizer state (checkpoint/slices.py), and before
the first step of a resumed run it is given a reader of others'.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from trainer.checkpoint.slices import Slice, SliceReader
from trainer.errors import TrainerError
from trainer.exact import Exact
from trainer.memory import Held
from trainer.registry import Registry
from trainer.sampler import Batch

Overlap = Literal["auto", "on", "off"]
GradReduction = Literal["global_mean", "rank_mean", "sum"]


@dataclass(frozen=True)
class Wire:
    """How gradients travel and are combined, for strategies that send some.

    grad_reduction: "global_mean", the sum of all losses divided by their global count; or, for study,
    "rank_mean", the mean over ranks of each rank's own mean, and "sum", the sum of these means.
    master_weights: the optimizer steps on float32 copies of 16-bit parameters.
    exact: None unless the bits must not depend on the number of ranks (exact.py).
    """

    codec: str = "none"
    overlap: Overlap = "auto"
    bucket_bytes: int = 25 << 20
    grad_reduction: GradReduction = "global_mean"
    master_weights: bool = False
    exact: Exact | None = None


class Strategy(ABC):
    """One rank's side of a strategy. Calls come from the training thread, in the same order on all ranks."""

    # Seconds of the last synchronize() or step() that were spent waiting for other ranks' data.
    exposed_s: float = 0.0
    # Whether all ranks hold the same gradients after synchronize(). Where they may not, a gradient that is
    # not finite is told to all by one more small all-gather in each step.
    equal_gradients: bool = False
    # Wire.exact, where the strategy keeps it: with that, `fit` refuses strategies which do not say so.
    exact: Exact | None = None
    # Whether it does what Wire.master_weights asks for.
    has_master_weights: bool = False
    # Whether no rank has the whole model between two steps.
    sharded: bool = False

    def before_forward(self, batch: Batch | None) -> None:  # noqa: B027
        """Blocks until the parameters may be read. `batch` is None before an evaluation."""

    def bucket_ready(self, bucket: int) -> None:  # noqa: B027
        """This rank's gradients of `bucket` are in place. Buckets come in order; must not block."""

    def loss(self, summed: Tensor, batch: Batch) -> Tensor:
        """What this rank back-propagates, given the sum of its losses: that sum, unless overridden."""
        return summed

    def keeping_gradients(self) -> AbstractContextManager[None]:
        """Within it, backward leaves gradients in `.grad` for the caller, who takes them away: they are one
        term of those that a later backward has. Ranks may enter it without one."""
        return nullcontext()

    def no_sync(self) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch that others of the step follow: gradients add up, to
        be combined with those of the last one. All ranks enter it equally often. Nothing unless overridden.
        """
        return nullcontext()

    def synchronize(self) -> None:  # noqa: B027
        """Blocks until gradients are combined. A strategy that does that elsewhere does nothing here."""

    def gradients(self, model: nn.Module) -> Iterable[tuple[str, Tensor]]:
        """The gradients that this rank has after synchronize(), with their parameters' names: those in the
        model, unless overridden."""
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                yield name, parameter.grad

    def clip_grad_norm_(self, max_norm: float) -> float:
        """Combines the gradients of all ranks and scales them to a norm of at most `max_norm`; returns what
        it was. A norm that is not finite changes nothing. Collective, blocks.

        Raises TrainerError where a strategy does not say what that is.
        """
        raise TrainerError(f"strategy {type(self).__name__} does not clip gradients")

    @abstractmethod
    def step(self) -> None:
        """Updates the parameters; combines the gradients, or parameters, of all ranks if still to be done."""

    def after_forward(self) -> None:  # noqa: B027
        """This rank makes no more forwards before the next before_forward(). May communicate; blocks."""

    def whole(self, named: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
        """Tensors of the model between two steps, each whole until the next is asked for. All ranks call it,
        with the same ones, and take all of them, where `sharded`."""
        return named

    def memory(self) -> Held | None:
        """What this rank holds between two steps, measured; None where a strategy does not say."""
        return None

    def state_slices(self) -> Iterable[Slice]:
        """What this rank writes of a checkpoint, after step() and before the next before_forward().

        The slices of all ranks together have every element of every tensor exactly once. May communicate;
        blocks until the parameters may be read.
        """
        raise TrainerError(f"{type(self).__name__} cannot be saved: it has no state_slices()")

    def load_slices(self, reader: SliceReader) -> None:
        """Takes parameters and optimizer state from a checkpoint, before the first step. May communicate.

        The names and shapes under `model.` are known to be those of the model, and those under `optimizer.`
        to be of its parameters.
        """
        raise TrainerError(f"{type(self).__name__} cannot be resumed: it has no load_slices()")

    def close(self) -> None:  # noqa: B027
        """Ends training without an error: all ranks then hold the same parameters. May communicate."""


STRATEGIES: Registry[Strategy] = Registry("strategy", "trainer.strategies")
