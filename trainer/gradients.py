"""Gradients of a model in flat buckets: what autograd's hooks do, and one round from backward to reduced.

A *slot* is one parameter's place in a bucket, a *round* is what ends in one optimizer step. As a gradient
is accumulated, its hook fills the slot: it copies the gradient there and points `.grad` at the slot's view,
or, when `.grad` already is the view, only marks it. Slots without a view take the gradient away: `.grad` is
then None. Whoever drops or replaces `.grad` between rounds (`zero_grad`, some optimizers) is thereby noticed.
From the hook until `reduce()` returns, a gradient belongs to its bucket and may be in flight: changing it
then is an error that reduce() reports, since the change may have come before or after the reduction.

Slots are in reverse order of registration, the order in which backward usually finishes them, and fixed for
the life of the model, so all ranks launch the same buckets in the same order without negotiation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

import pycomm
from trainer.errors import TrainerError
from trainer.state import bits


@dataclass(frozen=True)
class Slot:
    name: str
    parameter: nn.Parameter
    group: int  # gradients of different groups never share a bucket

    @property
    def place(self) -> pycomm.Slot:
        """What it asks of a bucket."""
        return pycomm.Slot(self.parameter.numel(), self.parameter.dtype, self.group)


def slots_of(model: nn.Module, optimizer: Optimizer | None) -> list[Slot]:
    """The trainable parameters in reverse order of registration, grouped as the optimizer groups them.

    A parameter that is used in several places is one slot. Parameters outside the optimizer form a group of
    their own.
    """
    groups = optimizer.param_groups if optimizer else []
    group_of = {id(parameter): index for index, group in enumerate(groups) for parameter in group["params"]}
    foreign = group_of.keys() - {id(parameter) for parameter in model.parameters()}
    if foreign:
        raise TrainerError(f"the optimizer holds {len(foreign)} tensors that are not parameters of the model")
    slots = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if is_lazy(parameter):
            raise TrainerError(f"parameter {name} has no shape yet: run a forward first")
        if parameter.device.type != "cpu":
            raise TrainerError(f"parameter {name}: expected device cpu, got {parameter.device}")
        slots.append(Slot(name, parameter, group_of.get(id(parameter), len(groups))))
    if not slots:
        raise TrainerError("the model has no parameter that requires a gradient")
    return slots[::-1]


class Buckets(Protocol):
    """What a round asks of its buckets, as pycomm.Buckets has it."""

    scale: float

    def put(self, slot: int, gradient: Any) -> int: ...
    def mark(self, slot: int) -> int: ...
    def launch(self, bucket: int) -> None: ...
    def flush(self) -> None: ...
    def wait(self) -> None: ...
    def used_bits(self) -> list[bool]: ...
    @property
    def submitted_s(self) -> list[float]: ...
    @property
    def finished_s(self) -> list[float]: ...
    @property
    def bytes_sent(self) -> int: ...


class GradientBuckets:
    """Owns the hooks, which fill `buckets` and call `bucket_ready(k)` for k = 0, 1, …

    `views`: by slot, what `.grad` becomes. `fingerprint`: whether the first round is hashed.
    """

    def __init__(
        self,
        buckets: Buckets,
        slots: Sequence[Slot],
        views: Sequence[Tensor | None],
        bucket_ready: Callable[[int], None],
        *,
        fingerprint: bool,
    ) -> None:
        self._slots = slots
        self._bucket_ready = bucket_ready
        self._buckets = buckets
        # .data: a version counter of its own for each view, so that a change of one gradient is seen.
        self._views = [None if view is None else view.data for view in views]
        self._scale: float | None = None
        self.paused = False
        self._fingerprint: Any = hashlib.sha256() if fingerprint else None  # None once it was taken
        self._begin()
        self._handles = [
            slot.parameter.register_post_accumulate_grad_hook(partial(self._arrived, index))
            for index, slot in enumerate(slots)
        ]

    @property
    def open(self) -> bool:
        """Whether gradients of this round have arrived."""
        return self._open

    @property
    def scale(self) -> float | None:
        return self._scale

    @scale.setter
    def scale(self, scale: float) -> None:
        """What the sums over ranks are multiplied with, from the next gradient on."""
        if self._open and scale != self._scale:
            raise TrainerError("the scale of a round cannot change after its first gradient arrived")
        self._scale = scale

    @property
    def times_s(self) -> list[tuple[float, float]]:
        """By bucket of the last round: launched and reduced when, on the clock of time.monotonic()."""
        return list(zip(self._buckets.submitted_s, self._buckets.finished_s, strict=True))

    @property
    def bytes_sent(self) -> int:
        """What this rank sent in the last round, as Buckets.bytes_sent."""
        return self._buckets.bytes_sent

    def launch(self, bucket: int) -> None:
        """Starts the reduction of a bucket that is ready; does not block."""
        self._buckets.launch(bucket)

    def reduce(self) -> list[bool]:
        """Ends the round: blocks until the buckets hold the scaled sums over all ranks, as does every `.grad`
        that is a view of them. Returns, by slot, whether any rank had a gradient.

        A parameter without one counts as zero if another rank has one; where no rank has one, `.grad` stays
        None. Raises TrainerError for gradients changed since their hook.
        """
        self._check_untouched()
        for index, slot in enumerate(self._slots):
            # Accumulated while paused, and not by the backward that ended the round.
            if self._version[index] is None and slot.parameter.grad is not None:
                self._fill(index)
        self._open_round()
        self._buckets.flush()
        self._buckets.wait()
        used = self._buckets.used_bits()
        for slot, view, is_used in zip(self._slots, self._views, used, strict=True):
            if is_used:
                slot.parameter.grad = view
        self._begin()
        return used

    def take_fingerprint(self) -> bytes | None:
        """Hash of the gradients that this rank has brought so far, those of zeros or with an overflow left
        out; None if there were none.

        Only once, of buckets made to hash: nothing is hashed afterwards.
        """
        digest: bytes = self._fingerprint.digest()
        self._fingerprint = None
        return None if digest == hashlib.sha256().digest() else digest

    def close(self) -> None:
        """Removes the hooks. Gradients keep their values."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin(self) -> None:
        self._open = False
        self._announced = 0
        # By slot: the view's version counter when the gradient arrived, 0 without a view; None before.
        self._version: list[int | None] = [None] * len(self._slots)

    def _open_round(self) -> None:
        if self._open:
            return
        if self._scale is None:
            raise TrainerError(
                "reduction 'sum' needs global_count, the samples of all ranks, before backward"
            )
        self._buckets.scale = self._scale
        self._open = True

    def _arrived(self, index: int, _: Tensor) -> None:
        """The hook: never blocks."""
        if self.paused:
            return
        if self._version[index] is not None:
            raise TrainerError(
                f"a second gradient for {self._slots[index].name} before the optimizer's step: wrap all but "
                "the last backward in no_sync(), under stage 2 each in one of its own, or synchronize() "
                "after a backward whose step is left out"
            )
        ready = self._fill(index)
        while self._announced < ready:
            self._announced += 1
            self._bucket_ready(self._announced - 1)

    def _fill(self, index: int) -> int:
        """Brings a gradient into its slot; returns how many buckets are ready."""
        self._open_round()
        parameter, view = self._slots[index].parameter, self._views[index]
        gradient = parameter.grad
        assert gradient is not None
        if self._fingerprint is not None and not gradient.is_sparse and _tells(gradient):
            self._fingerprint.update(bits(gradient))
        if gradient is view:
            ready = self._buckets.mark(index)
        else:
            if gradient.is_sparse:
                raise TrainerError(
                    f"the gradient of {self._slots[index].name} is sparse: buckets hold dense gradients"
                )
            ready = self._buckets.put(index, gradient.contiguous())
            parameter.grad = view
        self._version[index] = 0 if view is None else view._version
        return ready

    def _check_untouched(self) -> None:
        for slot, view, version in zip(self._slots, self._views, self._version, strict=True):
            if version is None:
                continue
            if slot.parameter.grad is not view or (view is not None and view._version != version):
                raise TrainerError(
                    f"the gradient of {slot.name} changed between backward and its reduction: call "
                    "synchronize() before reading or changing gradients (clipping, unscaling)"
                )


def _tells(gradient: Tensor) -> bool:
    """Whether its bits are of these samples: zeros, and what overflowed, are the same for many."""
    return bool(gradient.any()) and bool(gradient.isfinite().all())
