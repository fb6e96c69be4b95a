"""What strategies have in common whose optimizer steps on gradients summed over all ranks (DataParallel,
Zero): rank 0's parameters for all, one round of gradients from backward to `optimizer.step()`, the checks.

The division by the *global* count of samples makes the step independent of the number of ranks, also where
the batch is not a multiple of it. Averaging per-rank means (`loss_reduction="mean"`, what
DistributedDataParallel does) is the same only if all ranks hold equally many samples.
"""

from __future__ import annotations

import time
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pycomm import Communicator
from trainer.clipping import clip, sum_of_squares
from trainer.errors import TrainerError
from trainer.gradients import GradientBuckets, Slot, slots_of
from trainer.sampler import Batch
from trainer.state import broadcast, check_equal, parameters_sha256, ranks_that_differ, state_sha256
from trainer.strategy import Overlap, Strategy

LossReduction = Literal["mean", "sum"]
P = TypeVar("P", bound="Parallel")


class Parallel(Strategy):
    """Makes `optimizer.step()` see gradients reduced over all ranks. A subclass says into which buckets they
    go, and what becomes of them."""

    def __init__(
        self,
        model: nn.Module,
        comm: Communicator,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        loss_reduction: LossReduction = "mean",
        global_count: int | None = None,
        codec: str | None = None,
        overlap: Overlap = "auto",
        bucket_bytes: int = 25 << 20,
        broadcast_buffers: bool = True,
        master_weights: bool = False,
    ) -> None:
        if loss_reduction not in ("mean", "sum"):
            raise TrainerError(f"loss_reduction: expected mean or sum, got {loss_reduction!r}")
        self._model = model
        self._comm = comm
        self._optimizer = optimizer
        self._loss_reduction = loss_reduction
        self._global_count = None if global_count is None else self._checked(global_count)
        self._broadcast_buffers = broadcast_buffers
        self._master_weights = master_weights
        self._synchronized = False
        self._samples_unchecked = comm.size > 1
        self.overlap = _overlaps(overlap, comm)
        slots = slots_of(model, optimizer)
        self._trainable = {id(slot.parameter) for slot in slots}
        broadcast([*model.parameters(), *model.buffers()], comm)
        self.initial_sha256 = state_sha256(model)
        check_equal(self.initial_sha256, comm, "the model's initial parameters and buffers")
        self._gradients = self._make_buckets(slots, bucket_bytes, codec)
        divisor = comm.size if loss_reduction == "mean" else self._global_count
        if divisor is not None:
            self._gradients.scale = 1 / divisor
        self._step_hooks: list[RemovableHandle] = []
        if optimizer is not None:
            self._step_hooks.append(optimizer.register_step_pre_hook(self._before_step))
            self._step_hooks.append(optimizer.register_step_post_hook(self._after_step))

    @abstractmethod
    def _make_buckets(self, slots: list[Slot], bucket_bytes: int, codec: str | None) -> GradientBuckets:
        """Called once, when all ranks have the same parameters."""

    def _reduced(self, used: list[bool]) -> None:
        """Called when the gradients of a round are reduced; `used`: by slot, whether any rank had one."""

    @property
    def global_count(self) -> int | None:
        """Samples of all ranks, and all their micro-batches, in the step that follows. Set it before
        backward, the same on all ranks."""
        return self._global_count

    @global_count.setter
    def global_count(self, count: int) -> None:
        self._gradients.scale = 1 / self._checked(count)
        self._global_count = count

    @property
    def bucket_times_s(self) -> list[tuple[float, float]]:
        """By bucket of the last step: launched and reduced when, on the clock of time.monotonic()."""
        return self._gradients.times_s

    @property
    def bytes_sent(self) -> int:
        """Bytes of gradients that this rank sent in the last step."""
        return self._gradients.bytes_sent

    def before_forward(self, batch: Batch | None) -> None:
        if batch is not None and self._loss_reduction == "sum":
            self.global_count = batch.global_count

    def no_sync(self) -> AbstractContextManager[None]:
        """Within it, backward only accumulates; the first backward after it reduces the accumulated sum."""
        return self.keeping_gradients()

    @contextmanager
    def keeping_gradients(self) -> Iterator[None]:
        paused, self._gradients.paused = self._gradients.paused, True
        try:
            yield
        finally:
            self._gradients.paused = paused

    def synchronize(self) -> None:
        """Blocks until gradients are reduced; then they may be read and changed, as clipping does.
        Collective.

        `optimizer.step()` does this itself if it was not called before.
        """
        start = time.monotonic()
        self._check_trainable()
        self._reduced(self._gradients.reduce())
        if self._broadcast_buffers:
            broadcast(self._model.buffers(), self._comm)
        if self._samples_unchecked:
            self._check_samples()
            self._samples_unchecked = False
        self._synchronized = True
        self.exposed_s = time.monotonic() - start

    def share_overflow(self) -> None:
        """For torch's GradScaler, which looks at this rank's gradients alone: where some rank's are not
        finite, every rank has one that is not, so all skip the step. Between synchronize() and
        `scaler.unscale_(optimizer)`. Collective under Zero; elsewhere gradients are equal, and nothing is to
        be done.

        Raises TrainerError, on every rank, where a rank has no gradient: GradScaler would fail there.
        """

    def step(self) -> None:
        self._with_optimizer().step()

    @abstractmethod
    def _bucket_nbytes(self) -> int:
        """Of the memory that gradients have between two rounds."""

    def check_parameters(self) -> None:
        """Raises TrainerError, on every rank, if the parameters are not the same bits on all ranks.

        Collective, blocks. They differ when something other than the optimizer's step changed them on some
        ranks. Leaving `with …(model, comm, …)` without an exception does this too.
        """
        check_equal(parameters_sha256(self._model), self._comm, "the model's parameters")

    def clip_grad_norm_(self, max_norm: float) -> float:
        if self._gradients.open or not self._synchronized:
            self.synchronize()
        return clip((gradient for _, gradient in self.gradients(self._model)), max_norm, self._squares)

    def _squares(self, gradients: Sequence[Tensor]) -> float:
        """The sum of squares of all ranks' gradients, of which this rank has those after a round."""
        return sum_of_squares(gradients)

    def close(self) -> None:
        """Removes all hooks; the model and the optimizer are as before. Does not communicate."""
        self._release()

    def _release(self) -> None:
        self._gradients.close()
        for hook in self._step_hooks:
            hook.remove()
        self._step_hooks.clear()

    def __enter__(self: P) -> P:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            self.check_parameters()
        else:
            self._release()

    def _with_optimizer(self) -> torch.optim.Optimizer:
        if self._optimizer is None:
            raise TrainerError(
                f"step() and checkpoints need the optimizer that {type(self).__name__} was made without"
            )
        return self._optimizer

    def _before_step(self, _: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(callable(argument) for argument in [*args[1:], *kwargs.values()]):
            raise TrainerError(
                "optimizer.step(closure) runs backward after the reduction: call step() without one"
            )
        if self._gradients.open or not self._synchronized:
            self.synchronize()

    def _after_step(self, *_: object) -> None:
        # Not in _before_step: an optimizer whose step calls super().step() runs that hook twice.
        self._synchronized = False

    def _checked(self, global_count: int) -> int:
        if self._loss_reduction != "sum":
            raise TrainerError("global_count belongs to loss_reduction 'sum'; this one is 'mean'")
        if global_count < 1:
            raise TrainerError(f"global_count: expected 1 or more, got {global_count}")
        return global_count

    def _check_samples(self) -> None:
        """Equal bits from all ranks, in the first round, are equal samples: a sampler was forgotten."""
        fingerprint = self._gradients.take_fingerprint()
        differ = ranks_that_differ(fingerprint or bytes(32), self._comm)
        if self._comm.rank == 0 and fingerprint is not None and not differ:
            warnings.warn(
                f"all {self._comm.size} ranks have bit-identical gradients in the first step: they train on "
                "the same samples. Give each its own part of the batch, by trainer.sampler.Sampler, "
                "DistributedSampler or x.tensor_split(comm.size)[comm.rank]",
                stacklevel=2,
            )

    def _check_trainable(self) -> None:
        for name, parameter in self._model.named_parameters():
            if parameter.grad is not None and id(parameter) not in self._trainable:
                raise TrainerError(
                    f"{name} has a gradient but needed none when {type(self).__name__} was made: make it anew"
                )


def _overlaps(overlap: Overlap, comm: Communicator) -> bool:
    if overlap not in ("auto", "on", "off"):
        raise TrainerError(f"overlap: expected auto, on or off, got {overlap!r}")
    if overlap == "auto":
        return comm.size > 1 and comm.progress == "thread" and comm.cores > torch.get_num_threads()
    return overlap == "on"
