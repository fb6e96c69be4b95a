"""Data parallelism with sharded state: every rank updates a part of the parameters, and holds the optimizer's
state of that part alone.

The method is that of Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models" (SC 2020): gradients are reduce-scattered instead of all-reduced, the owner of a part steps on it, and
an all-gather gives it to the others. That is the traffic of data parallelism, and the optimizer's work is
divided by the number of ranks. In stage 3 the all-gather is made twice, before forward and before backward,
of a block of parameters at a time: half as much traffic again, and nobody holds all parameters.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pycomm import Communicator
from trainer.accumulation import PartSums
from trainer.block_norm import BlockNorm
from trainer.block_store import BlockStore
from trainer.blocks import Choice, partition
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
from trainer.state import check_equal, hash_of
from trainer.store import Replicas, Store
from trainer.strategy import Overlap, Wire

PATIENCE_S = 0.2  # of stage 3 with a bucket's memory: ranks that take other branches may wait for this one


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

    In stage 3 parameters are there while their block computes, and not-a-number otherwise. To read or change
    them, `with parallel.gathered():`, on all ranks; leaving the outer `with` block, or close(), makes them
    whole again. A block's parameters are used by calling its module. Ranks may differ in the forwards they
    make, but each forward needs all: a rank that makes fewer calls after_forward() before other collectives.

    Args:
        stage: 0 shards nothing, and is DataParallel but for stepping on slices. 1 keeps buckets for all
            gradients, and overlaps as DataParallel does. 2 keeps this rank's part of them and buckets for
            `pool` at a time; it reduces from within backward, whatever the overlap. 3 is 2 with parameters in
            parts too; a block is a bucket.
        pool: of stages 2 and 3, the number of buckets that have memory.
        blocks: of stage 3: modules, names of their classes, or a function that says of a module whether it is
            one (trainer/blocks.py). The children of Sequentials and ModuleLists if not given.
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
        blocks: Choice = None,
        exact: Exact | None = None,
        loss_reduction: LossReduction = "mean",
        global_count: int | None = None,
        codec: str | None = None,
        overlap: Overlap = "auto",
        bucket_bytes: int = 25 << 20,
        broadcast_buffers: bool = True,
        master_weights: bool = False,
    ) -> None:
        check(Wire(overlap=overlap), stage=stage, pool=pool, share_params=share_params, blocks=blocks)
        check_elementwise(optimizer)
        if share_params:
            check_shareable(comm)
        self._stepped = optimizer
        self._share_params = share_params
        self._stage = stage
        self.sharded = stage == 3
        self._owners = comm.size if stage else 1
        self.equal_gradients = self._owners == 1
        self.exact = exact
        self._pool = pool
        self._choice = blocks
        self._depth = 0  # of steps within steps
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
        # There is no hook for this; the gradients to clear are not those of the slices.
        optimizer.zero_grad = self._clear  # type: ignore[method-assign]

    def _make_buckets(self, slots: list[Slot], bucket_bytes: int, codec: str | None) -> GradientBuckets:
        _check_all_stepped(slots, self._stepped)
        self._store = self._make_store(slots, bucket_bytes)
        layout = self._store.layout
        self._shards = Shards(self._comm, self._store, self._stepped, master_weights=self._master_weights)
        self._buckets = ScatterBuckets(
            self._comm,
            layout,
            codec=codec,
            order="tree" if self.exact else "any",
            launch_when_full=self.overlap,
            pool=self._pool if self._stage > 1 else None,
            patience_s=PATIENCE_S if self._stage == 3 else None,
            before_wait=self._store.finish,
        )
        self._sums = PartSums(self._buckets.parts, len(slots)) if self._stage > 1 else None
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

    def _make_store(self, slots: list[Slot], bucket_bytes: int) -> Store:
        if self._stage == 3:
            members = partition(self._model, self._choice)
            return BlockStore(self._comm, self._model, members, slots, self.exact)
        places = [slot.place for slot in slots]
        layout = shard_layout(places, self._owners, bucket_bytes, **cuts(self.exact))
        return Replicas(self._comm, self._model, layout, slots, shared=self._share_params)

    def before_forward(self, batch: Batch | None) -> None:
        super().before_forward(batch)
        self.wait()

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Within it, backward only accumulates; the first backward after it reduces the accumulated sum.

        Under stages 2 and 3, which have no room for that, the gradients are reduced at once and this rank's
        part of them is added up: it is collective then, every rank enters it equally often, with or without a
        backward, and has at most one backward in it, of forwards made in it.
        """
        if self._sums is None:
            with super().no_sync():
                yield
            return
        yield
        start = time.monotonic()
        self._check_trainable()
        self._sums.add(self._gradients.reduce())
        self._store.waited_s += time.monotonic() - start

    def after_forward(self) -> None:
        self._store.finish()

    def whole(self, named: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
        return self._store.whole(named)

    def gathered(self) -> AbstractContextManager[None]:
        """Within it, the model has whole parameters; changes of them, the same on all ranks, stay. In stage 3
        collective, and no place for a step."""
        return self._store.gathered()

    def wait(self) -> None:
        """Blocks until the parameters of the last step are everyone's. In stage 3 forwards and gathered() do
        that; after an exception this makes parameters whole again, and is collective."""
        self._store.wait()

    def synchronize(self) -> None:
        super().synchronize()
        self._depth = 0  # also after a step that raised
        self.exposed_s += self._store.waited_s
        self._store.waited_s = 0.0

    def gradients(self, model: nn.Module) -> Iterable[tuple[str, Tensor]]:
        for piece, own in zip(self._shards.pieces, self._shards.slices, strict=True):
            if own.grad is not None:
                yield self._shards.slots[piece.slot].name, own.grad

    def memory(self) -> Held:
        rest = [parameter for parameter in self._model.parameters() if id(parameter) not in self._store.held]
        parameters = self._store.nbytes + sum(parameter.nbytes for parameter in rest)
        return measured(parameters, self._bucket_nbytes(), self._stepped, self._shards.masters.nbytes)

    def _bucket_nbytes(self) -> int:
        return self._buckets.nbytes + (self._sums.nbytes if self._sums else 0)

    def state_slices(self) -> Iterator[Slice]:
        self.wait()
        yield from self._shards.saved(self._model)

    def load_slices(self, reader: SliceReader) -> None:
        self._shards.load(self._model, reader)

    def check_parameters(self) -> None:
        named = sorted(self._model.named_parameters())
        check_equal(hash_of(self._store.whole(named)), self._comm, "the model's parameters")

    def close(self) -> None:
        """Blocks until parameters are everyone's; removes all hooks, and the optimizer has whole parameters
        again, without state. In stage 3 collective."""
        self._store.restore()
        super().close()

    def _release(self) -> None:
        """After an exception, parameters may be elsewhere: the next forward, or wait(), brings them."""
        super()._release()
        vars(self._stepped).pop("zero_grad", None)
        self._shards.give_back()
        self._store.leave()

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
            self._shards.after_step()

    def _clear(self, set_to_none: bool = True) -> None:
        """What optimizer.zero_grad() does meanwhile."""
        if self._gradients.open:
            raise TrainerError("zero_grad() between backward and step(): gradients are being reduced")
        for own in self._shards.slices:
            own.grad = None
        if self._sums is not None:
            self._sums.drop()
        self._model.zero_grad(set_to_none)


def _check_all_stepped(slots: Sequence[Slot], optimizer: torch.optim.Optimizer) -> None:
    outside = [slot.name for slot in slots if slot.group == len(optimizer.param_groups)]
    if outside:
        raise TrainerError(
            f"{outside[0]} requires a gradient and is not in the optimizer (one of {len(outside)}): "
            "nobody would update it; add it, or set requires_grad to False"
        )


def check(
    wire: Wire, *, stage: int, pool: int = POOL, share_params: bool = False, blocks: Choice = None
) -> None:
    """Raises TrainerError for what Zero refuses whatever the model."""
    if stage not in (0, 1, 2, 3):
        raise TrainerError(f"stage: expected 0, 1, 2 or 3, got {stage!r}")
    if type(pool) is not int or pool < 1:
        raise TrainerError(f"pool: expected 1 bucket or more, got {pool!r}")
    if type(share_params) is not bool:
        raise TrainerError(f"share_params: expected true or false, got {share_params!r}")
    if share_params and stage == 3:
        raise TrainerError("share_params: stage 3 has no copy of the parameters to share; expected false")
    if share_params and stage == 0:
        raise TrainerError(
            "stage 0 leaves each rank its own parameters: share_params belongs to stages 1 and 2"
        )
    if isinstance(blocks, str):
        raise TrainerError(f"blocks: expected a list, got {blocks!r}")
    if blocks is not None and stage != 3:
        raise TrainerError(f"blocks belong to stage 3, got stage {stage}")
    if stage > 1 and wire.overlap == "off":
        raise TrainerError(
            f"stage {stage} reduces from within backward, to have its memory back: expected overlap auto or "
            "on, got off"
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
