"""Data parallelism: every rank holds the model, takes its part of the batch, and gradients are summed over
ranks.

The method is that of Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training"
(VLDB 2020): buckets in reverse order of registration, launched as backward fills them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import pycomm
from pycomm import Communicator
from trainer.checkpoint.slices import Slice, SliceReader, load_replicated, replicated_slices
from trainer.gradients import GradientBuckets, Slot
from trainer.master_weights import masters_wanted
from trainer.memory import Held, measured
from trainer.parallel import Parallel
from trainer.sampler import Batch
from trainer.strategy import STRATEGIES, Strategy, Wire
from trainer.zero import of_wire


class DataParallel(Parallel):
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
    when all ranks bring the same gradients to the first step: then all train on the same samples. With
    torch's GradScaler call synchronize() before `scaler.unscale_(optimizer)`.

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
        master_weights: the optimizer steps on float32 copies of 16-bit parameters. From synchronize() on, or
            within step(), gradients are those of the copies and the model's `.grad` is None, so clip by
            `clip_grad_norm_`.
        bucket_bytes: a bucket is closed when the next gradient would exceed this.
        broadcast_buffers: False leaves each rank its own buffers after the start.
    """

    equal_gradients = True
    has_master_weights = True

    def bucket_ready(self, bucket: int) -> None:
        if self.overlap:
            self._gradients.launch(bucket)

    def _make_buckets(self, slots: list[Slot], bucket_bytes: int, codec: str | None) -> GradientBuckets:
        self._masters = masters_wanted(self._optimizer, self._master_weights)
        places = [slot.place for slot in slots]
        self._buckets = buckets = pycomm.Buckets(
            self._comm, places, bucket_bytes=bucket_bytes, codec=codec, launch="manual"
        )
        views = [buckets.torch_view(index, slot.parameter.shape) for index, slot in enumerate(slots)]
        return GradientBuckets(buckets, slots, views, self.bucket_ready, fingerprint=self._comm.size > 1)

    def _bucket_nbytes(self) -> int:
        return sum(flat.nbytes for flat in self._buckets.flat)

    def _reduced(self, used: list[bool]) -> None:
        self._masters.take_gradients()

    def _after_step(self, *hook: Any) -> None:
        super()._after_step(*hook)
        self._masters.publish()

    def _release(self) -> None:
        super()._release()
        self._masters.close()

    def gradients(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        yield from self._masters.gradients(model)

    def memory(self) -> Held:
        parameters = sum(parameter.nbytes for parameter in self._model.parameters())
        return measured(parameters, self._bucket_nbytes(), self._optimizer, self._masters.nbytes)

    def state_slices(self) -> Iterator[Slice]:
        rank, size = self._comm.rank, self._comm.size
        return replicated_slices(self._model, self._with_optimizer(), rank, size, self._masters.of)

    def load_slices(self, reader: SliceReader) -> None:
        load_replicated(self._model, self._with_optimizer(), reader, self._masters.of)
        self._masters.settle()


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
        return summed / max(1, batch.local_count)


@STRATEGIES.register("data_parallel")
def data_parallel(
    model: nn.Module, comm: Communicator, optimizer: torch.optim.Optimizer, wire: Wire
) -> Strategy:
    if wire.exact:
        return of_wire(model, comm, optimizer, wire, stage=0)
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
        master_weights=wire.master_weights,
    )
