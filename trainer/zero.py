"""Data parallelism with sharded state: every rank updates a part of the parameters, and holds the optimizer's
state of that part alone.

The method is that of Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models" (SC 2020), stages 1 and 2: gradients are reduce-scattered instead of all-reduced, the owner of a part
steps on it, and an all-gather gives it to the others. That is the traffic of data parallelism, and the
optimizer's work is divided by the number of ranks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pycomm import Communicator
from trainer.accumulation import PartSums
from trainer.block_norm import BlockNorm
from trainer.checkpoint.slices import Slice, SliceReader
from trainer.clipping import sum_of_squares
from trainer.elementwise import check_elementwise
from trainer.errors import TrainerError
from trainer.exact import Exact, cuts
from trainer.gradients import GradientBuckets, Slot
from trainer.layout import shard_layout
from trainer.memory import POOL, Held, measured
from trainer.parallel import LossReduction, Parallel
from trainer.sampler import Batch
from trainer.scatter import ScatterBuckets
from trainer.shards import Shards
from trainer.shared_memory import check_shareable
from trainer.strategy import Overlap, Wire


class Zero(Parallel):
    """DataParallel whose ranks each keep a part of the optimizer's state. The model is used as before.

        with Zero(model, comm, optimizer, loss_reduction="sum") as parallel:
            for inputs, targets, global_count in batches:
                parallel.global_count = global_count
                optimizer.zero_grad()
                summed_loss(model(inputs), targets).backward()
                parallel.clip_grad_norm_(1.0)
                optimizer.step()

    A step is DataParallel's, and so are the conditions. Your optimizer steps on slices of the parameters in
    the place of whole ones, with the settings its groups have at that moment, so schedulers work; on leaving
    the `with` block it has its parameters back, and the slices' state is gone. From backward on, gradients
    are in buckets and `.grad` is None: nobody has whole ones, so clip by `clip_grad_norm_`. Parameters are
    everyone's again when a forward of any module begins; before reading them otherwise, call `wait()`.
    `optimizer.state_dict()` has this rank's slices. With torch's GradScaler: synchronize(), share_overflow(),
    `unscale_(optimizer)`, clip_grad_norm_(), `scaler.step(optimizer)`; or a LossScaler.

    Args:
        stage: 0 shards nothing, and is DataParallel but for stepping on slices. 1 keeps buckets for all
            gradients, and overlaps as DataParallel does. 2 keeps this rank's part of them and buckets for
            `pool` at a time; it reduces from within backward, whatever the overlap.
        pool: of stage 2, the number of buckets that have memory.
        share_params: one copy of the parameters for all ranks, which are on one node: what an owner writes is
            everyone's at once. Whoever changes a parameter by hand then changes it for all; with
            master_weights every rank has to.
        exact: step the same slices and add up in the same order whatever the number of ranks (exact.py).
        The rest are DataParallel's.

    Raises TrainerError for an optimizer that does not treat each element by itself (LBFGS, Adafactor, Muon),
    found by trial, and for parameters that require a gradient and are not in the optimizer.
    """

    has_master_weights = True

    def __init__(
        self,
        model: nn.Module,
        comm: Communicator,
        optimizer: torch.optim.Optimizer,
        *,
        stage: int = 1,
        pool: int = POOL,
        share_params: bool = False,
        exact: Exact | None = None,
        loss_reduction: LossReduction = "mean",
        global_count: int | None = None,
        codec: str | None = None,
        overlap: Overlap = "auto",
        bucket_bytes: int = 25 << 20,
        broadcast_buffers: bool = True,
        master_weights: bool = False,
    ) -> None:
        check(Wire(overlap=overlap), stage=stage, pool=pool, share_params=share_params)
        check_elementwise(optimizer)
        if share_params:
            check_shareable(comm)
        self._stepped = optimizer
        self._share_params = share_params
        self._pool = pool if stage == 2 else None
        self._owners = comm.size if stage else 1
        self.equal_gradients = self._owners == 1
        self.exact = exact
        self._depth = 0  # of steps within steps
        self._gather_wait_s = 0.0
        super().__init__(
            model,
            comm,
            optimizer,
            loss_reduction=loss_reduction,
            global_count=global_count,
            codec=codec,
            overlap=overlap,
            bucket_bytes=bucket_bytes,
            broadcast_buffers=broadcast_buffers,
            master_weights=master_weights,
        )
        self._closed = False
        self._model_hooks = [
            module.register_forward_pre_hook(self._before_module) for module in model.modules()
        ]
        self._model_hooks.append(model.register_state_dict_pre_hook(self._before_state_dict))  # type: ignore[no-untyped-call]
        # There is no hook for this; the gradients to clear are not those of the slices.
        optimizer.zero_grad = self._clear  # type: ignore[method-assign]

    def _make_buckets(self, slots: list[Slot], bucket_bytes: int, codec: str | None) -> GradientBuckets:
        places = [slot.place for slot in slots]
        layout = shard_layout(places, self._owners, bucket_bytes, **cuts(self.exact))
        self._shards = Shards(
            self._comm,
            layout,
            slots,
            self._stepped,
            shared=self._share_params,
            master_weights=self._master_weights,
        )
        self._buckets = ScatterBuckets(
            self._comm,
            layout,
            codec=codec,
            order="tree" if self.exact else "any",
            launch_when_full=self.overlap,
            pool=self._pool,
        )
        self._sums = None if self._pool is None else PartSums(self._buckets.parts, len(slots))
        starts = [layout.part(bucket, self._comm.rank).start for bucket in range(len(layout.sizes))]
        self._reduced_slices = [
            self._buckets.parts[piece.bucket][piece.offset - starts[piece.bucket] :][: piece.count]
            for piece in self._shards.pieces
        ]
        counts = [slot.parameter.numel() for slot in slots]
        self._norm = BlockNorm(counts, self._shards.pieces, self._over_ranks) if self.exact else None
        return GradientBuckets(
            self._buckets, slots, [None] * len(slots), self.bucket_ready, fingerprint=self._comm.size > 1
        )

    def before_forward(self, batch: Batch | None) -> None:
        super().before_forward(batch)
        self.wait()

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within it, backward only accumulates; the first backward after it reduces the accumulated sum.

        Under stage 2, which has no room for that, the gradients are reduced at once and this rank's part of
        them is added up: it is collective then, every rank enters it equally often, with or without a
        backward, and has at most one backward in it.
        """
        if self._sums is None:
            with super().no_sync():
                yield
            return
        yield
        start = time.monotonic()
        self._check_trainable()
        self._sums.add(self._gradients.reduce())
        self._gather_wait_s += time.monotonic() - start

    def wait(self) -> None:
        """Blocks until the parameters of the last step are everyone's."""
        start = time.monotonic()
        self._shards.wait()
        self._gather_wait_s += time.monotonic() - start

    def synchronize(self) -> None:
        super().synchronize()
        self._depth = 0  # also after a step that raised
        self.exposed_s += self._gather_wait_s
        self._gather_wait_s = 0.0

    def gradients(self, model: nn.Module) -> Iterable[tuple[str, Tensor]]:
        for piece, own in zip(self._shards.pieces, self._shards.slices, strict=True):
            if own.grad is not None:
                yield self._shards.slots[piece.slot].name, own.grad

    def memory(self) -> Held:
        frozen = [parameter for parameter in self._model.parameters() if not parameter.requires_grad]
        parameters = self._shards.nbytes + sum(parameter.nbytes for parameter in frozen)
        return measured(parameters, self._bucket_nbytes(), self._stepped, self._shards.masters.nbytes)

    def _bucket_nbytes(self) -> int:
        return self._buckets.nbytes + (self._sums.nbytes if self._sums else 0)

    def state_slices(self) -> Iterator[Slice]:
        self.wait()
        yield from self._shards.saved(self._model)

    def load_slices(self, reader: SliceReader) -> None:
        self._shards.load(self._model, reader)

    def check_parameters(self) -> None:
        self.wait()
        super().check_parameters()

    def close(self) -> None:
        """Blocks until parameters are everyone's; removes all hooks, and the optimizer has whole parameters
        again, without state."""
        self.wait()
        super().close()

    def _release(self) -> None:
        """After an exception, parameters may be on their way: the model's hooks stay until they are there."""
        super()._release()
        vars(self._stepped).pop("zero_grad", None)
        self._shards.give_back()
        self._closed = True
        if not self._shards.gathering:
            self._unhook()

    def _unhook(self) -> None:
        for hook in self._model_hooks:
            hook.remove()
        self._model_hooks.clear()

    def _squares(self, gradients: Sequence[Tensor]) -> float:
        if self._norm is not None:
            return self._norm.squares([own.grad for own in self._shards.slices])
        return float(self._over_ranks(np.array([sum_of_squares(gradients)]))[0])

    def _over_ranks(self, sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The sums of all owners, from those of what this rank owns."""
        return sums if self._owners == 1 else self._comm.all_reduce(sums)

    def _reduced(self, used: list[bool]) -> None:
        if self._sums is not None:
            used = self._sums.complete(used)
        for piece, own, gradient in zip(
            self._shards.pieces, self._shards.slices, self._reduced_slices, strict=True
        ):
            own.grad = gradient.to(own.dtype) if used[piece.slot] else None  # a master's is float32

    def share_overflow(self) -> None:
        gradients = [gradient for _, gradient in self.gradients(self._model)]
        finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
        all_finite, all_have = self._comm.all_reduce(np.array([finite, bool(gradients)], np.uint8), op="min")
        if not all_have:
            raise TrainerError("share_overflow: a rank has no gradient, which GradScaler cannot do without")
        if finite and not all_finite:
            gradients[0][0] = torch.nan

    def _before_module(self, *_: object) -> None:
        if self._shards.gathering:
            self.wait()
        if self._closed:
            self._unhook()

    def _before_state_dict(self, *_: object) -> None:
        if self._shards.gathering:
            self.wait()  # and no more: torch is iterating over the hooks

    def _before_step(self, *hook: Any) -> None:
        super()._before_step(*hook)
        if self._depth == 0:
            self._shards.before_step()
        self._depth += 1

    def _after_step(self, *hook: Any) -> None:
        super()._after_step(*hook)
        self._depth -= 1
        if self._depth == 0:
            for own in self._shards.slices:
                own.grad = None
            self._shards.gather()

    def _clear(self, set_to_none: bool = True) -> None:
        """What optimizer.zero_grad() does meanwhile."""
        if self._gradients.open:
            raise TrainerError("zero_grad() between backward and step(): gradients are being reduced")
        for own in self._shards.slices:
            own.grad = None
        if self._sums is not None:
            self._sums.drop()
        self._model.zero_grad(set_to_none)


def check(wire: Wire, *, stage: int, pool: int = POOL, share_params: bool = False) -> None:
    """Raises TrainerError for what Zero refuses whatever the model."""
    if stage not in (0, 1, 2):
        raise TrainerError(f"stage: expected 0, 1 or 2, got {stage!r}")
    if type(pool) is not int or pool < 1:
        raise TrainerError(f"pool: expected 1 bucket or more, got {pool!r}")
    if type(share_params) is not bool:
        raise TrainerError(f"share_params: expected true or false, got {share_params!r}")
    if stage == 0 and share_params:
        raise TrainerError(
            "stage 0 leaves each rank its own parameters: share_params belongs to stages 1 and 2"
        )
    if stage == 2 and wire.overlap == "off":
        raise TrainerError(
            "stage 2 reduces from within backward, to have its memory back: expected overlap auto or on, "
            "got off"
        )
    if wire.grad_reduction != "global_mean":
        raise TrainerError(f"Zero: expected grad_reduction global_mean, got {wire.grad_reduction}")


def of_wire(
    model: nn.Module, comm: Communicator, optimizer: torch.optim.Optimizer, wire: Wire, **own: Any
) -> Zero:
    """For `fit`: `own` are Zero's own arguments."""
    check(wire, **own)
    return Zero(
        model,
        comm,
        optimizer,
        loss_reduction="sum",
        codec=wire.codec,
        overlap=wire.overlap,
        bucket_bytes=wire.bucket_bytes,
        exact=wire.exact,
        master_weights=wire.master_weights,
        **own,
    )
