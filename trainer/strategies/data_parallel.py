"""Data parallelism: every rank holds the model, takes its part of the batch, and gradients are summed over
ranks.

The division by the *global* count of samples makes the step independent of the number of ranks, also where
the batch is not a multiple of it. Averaging per-rank means (`loss_reduction="mean"`, what
DistributedDataParallel does) is the same only if all ranks hold equally many samples.

The method is that of Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training"
(VLDB 2020): buckets in reverse order of registration, launched as backward fills them.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pycomm import Communicator
from trainer.checkpoint.slices import Slice, SliceReader, load_replicated, replicated_slices
from trainer.errors import TrainerError
from trainer.gradients import GradientBuckets, slots_of
from trainer.sampler import Batch
from trainer.state import broadcast, check_equal, parameters_sha256, ranks_that_differ, state_sha256
from trainer.strategy import STRATEGIES, Overlap, Strategy, Wire


class DataParallel(Strategy):
    """Makes `optimizer.step()` see gradients reduced over all ranks of `comm`. The model is used as before.

        with DataParallel(model, comm, optimizer, loss_reduction="sum") as parallel:
            for inputs, targets, global_count in batches:
                parallel.global_count = global_count
                optimizer.zero_grad()
                summed_loss(model(inputs), targets).backward()
                optimizer.step()

    Construction is collective and blocks: every rank gets rank 0's parameters and buffers, and a hash is
    compared. Afterwards every rank must reach every `optimizer.step()`, with or without a backward before
    it. Gradients have to be zeroed or dropped after each step. Buffers follow rank 0 at each step. Warns
    when all ranks bring the same gradients to the first step: then all train on the same samples.

    Args:
        optimizer: its step waits for the reduction, and its parameter groups do not share buckets. Without
            one, call synchronize() after each backward.
        loss_reduction: what your loss is, as in torch's `mse_loss(…, reduction="sum")`. "sum", over the
            rank's samples: the sum of all ranks' gradients is divided by global_count, so that the step is
            that of one process. "mean": it is divided by the number of ranks, and the step is that of one
            process only if all ranks have equally many samples.
        global_count: samples of all ranks in a step, for "sum"; set the attribute of this name when it
            changes.
        codec: how gradients travel: "none", "fp16", "bf16".
        overlap: "on" launches full buckets from within backward, "off" launches all at the step. "auto" is
            on where pycomm has a progress thread and the rank more cores than compute threads; elsewhere it
            would only take cycles and cache from backward.
        bucket_bytes: a bucket is closed when the next gradient would exceed this.
        broadcast_buffers: False leaves each rank its own buffers after the start.
    """

    equal_gradients = True

    def __init__(
        self,
        model: nn.Module,
        comm: Communicator,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        loss_reduction: Literal["mean", "sum"] = "mean",
        global_count: int | None = None,
        codec: str | None = None,
        overlap: Overlap = "auto",
        bucket_bytes: int = 25 << 20,
        broadcast_buffers: bool = True,
    ) -> None:
        if loss_reduction not in ("mean", "sum"):
            raise TrainerError(f"loss_reduction: expected mean or sum, got {loss_reduction!r}")
        self._model = model
        self._comm = comm
        self._optimizer = optimizer
        self._loss_reduction = loss_reduction
        self._global_count = None if global_count is None else self._checked(global_count)
        self._broadcast_buffers = broadcast_buffers
        self._synchronized = False
        self._samples_unchecked = comm.size > 1
        self.overlap = _overlaps(overlap, comm)
        slots = slots_of(model, optimizer)
        self._trainable = {id(slot.parameter) for slot in slots}
        broadcast([*model.parameters(), *model.buffers()], comm)
        self.initial_sha256 = state_sha256(model)
        check_equal(self.initial_sha256, comm, "the model's initial parameters and buffers")
        self._gradients = GradientBuckets(
            comm, slots, self.bucket_ready, bucket_bytes=bucket_bytes, codec=codec
        )
        divisor = comm.size if loss_reduction == "mean" else self._global_count
        if divisor is not None:
            self._gradients.scale = 1 / divisor
        self._step_hooks: list[RemovableHandle] = []
        if optimizer is not None:
            self._step_hooks.append(optimizer.register_step_pre_hook(self._before_step))
            self._step_hooks.append(optimizer.register_step_post_hook(self._after_step))

    @property
    def global_count(self) -> int | None:
        """Samples of all ranks in the step that follows. Set it before backward, the same on all ranks."""
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

    def bucket_ready(self, bucket: int) -> None:
        if self.overlap:
            self._gradients.launch(bucket)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within it, backward only accumulates; the first backward after it reduces the accumulated sum."""
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
        self._gradients.reduce()
        if self._broadcast_buffers:
            broadcast(self._model.buffers(), self._comm)
        if self._samples_unchecked:
            self._check_samples()
            self._samples_unchecked = False
        self._synchronized = True
        self.exposed_s = time.monotonic() - start

    def step(self) -> None:
        self._with_optimizer().step()

    def state_slices(self) -> Iterator[Slice]:
        return replicated_slices(self._model, self._with_optimizer(), self._comm.rank, self._comm.size)

    def load_slices(self, reader: SliceReader) -> None:
        load_replicated(self._model, self._with_optimizer(), reader)

    def check_parameters(self) -> None:
        """Raises TrainerError, on every rank, if the parameters are not the same bits on all ranks.

        Collective, blocks. They differ when something other than the optimizer's step changed them on some
        ranks. Leaving `with DataParallel(...)` without an exception does this too.
        """
        check_equal(parameters_sha256(self._model), self._comm, "the model's parameters")

    def close(self) -> None:
        """Removes all hooks; the model and the optimizer are as before. Does not communicate."""
        self._gradients.close()
        for hook in self._step_hooks:
            hook.remove()
        self._step_hooks.clear()

    def __enter__(self) -> DataParallel:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if kind is None:
            self.check_parameters()

    def _with_optimizer(self) -> torch.optim.Optimizer:
        if self._optimizer is None:
            raise TrainerError("step() and checkpoints need the optimizer that DataParallel was made without")
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
                    f"{name} has a gradient but needed none when DataParallel was made: make it anew"
                )


def _overlaps(overlap: Overlap, comm: Communicator) -> bool:
    if overlap not in ("auto", "on", "off"):
        raise TrainerError(f"overlap: expected auto, on or off, got {overlap!r}")
    if overlap == "auto":
        return comm.size > 1 and comm.progress == "thread" and comm.cores > torch.get_num_threads()
    return overlap == "on"


class RankMeans(DataParallel):
    """For study: every rank back-propagates the mean over its own samples, whatever the others have.

    The gradient is then the mean over ranks of these means (`loss_reduction="mean"`, as with
    DistributedDataParallel): that of one process only where all ranks have equally many samples, and a rank
    without one pulls it towards zero. Or it is their sum (`loss_reduction="sum"`, `global_count=1`), a
    frequent mistake: the step grows with the number of ranks.
    """

    def before_forward(self, batch: Batch | None) -> None:
        """The divisor is the same at every step."""

    def loss(self, summed: Tensor, batch: Batch) -> Tensor:
        return summed / batch.local_count


@STRATEGIES.register("data_parallel")
def data_parallel(
    model: nn.Module, comm: Communicator, optimizer: torch.optim.Optimizer, wire: Wire
) -> Strategy:
    make = DataParallel if wire.grad_reduction == "global_mean" else RankMeans
    return make(
        model,
        comm,
        optimizer,
        loss_reduction="mean" if wire.grad_reduction == "rank_mean" else "sum",
        global_count=1 if wire.grad_reduction == "sum" else None,
        codec=wire.codec,
        overlap=wire.overlap,
        bucket_bytes=wire.bucket_bytes,
    )
