"""Calls that start together, small all-reduces as one."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from pycomm.collectives import Collectives
from pycomm.errors import InvalidArgument
from pycomm.request import Request
from pycomm.tensors import count_of, is_torch, nbytes_of, new_like
from pycomm.work import Work

T = TypeVar("T")

# Arrays up to this size are fused: below, a message costs more than the two copies.
SMALL_BYTES = 64 << 10
FUSED_BYTES = 4 << 20  # of one fused array, at most


class Grouped(Collectives):
    """A communicator's collectives, recorded within a `with` block, started at its end and waited for.

        with comm.grouped() as group:
            for gradient in gradients:
                group.all_reduce(gradient)
            group.send(x, right)
            group.recv(y, left)

    Nothing moves before the end of the block; then all calls are in flight together, so the order of sends
    and receives cannot deadlock, and results are there when the block is left. All ranks record the same
    collectives in the same order. Calls of all_reduce in place, on arrays of at most 64 KiB with the same
    dtype, op, codec, scale, algorithm, timeout and order, travel as one: where that changes the order of a
    floating sum its last bits may differ from those of the single calls; with an `order` they do not. An
    exception in the block starts nothing; one in a call is raised when all others have ended.
    """

    def __init__(self, communicator: Collectives) -> None:
        self.rank = communicator.rank
        self.size = communicator.size
        self._communicator = communicator
        self._calls: list[Request] = []
        self._open = False

    def __enter__(self) -> Grouped:
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        calls, self._calls = self._calls, []
        if error is None:
            _run_together(self._communicator, calls)

    def _run(self, call: Request) -> None:
        if not self._open:
            raise InvalidArgument(f"{call.collective} of a group: calls belong into its `with` block")
        self._calls.append(call)

    def _told(self, counts: list[int], timeout: float | None) -> list[int]:
        raise InvalidArgument(
            "all_to_all of a group: counts needs received, since nothing moves before the end"
        )

    def _start(self, call: Request, result: T) -> Work[T]:
        raise InvalidArgument(f"{call.collective}_async of a group: its calls all start when the block ends")


@dataclass
class _Fused:
    """Several all_reduces as one, on a copy of their arrays end to end."""

    calls: list[Request]
    flat: Any  # a tensor if any of the arrays is one: ranks may differ in that

    @classmethod
    def of(cls, calls: list[Request]) -> _Fused:
        model = next((call.x for call in calls if is_torch(call.x)), calls[0].x)
        fused = cls(calls, new_like(model, (sum(count_of(call.x) for call in calls),)))
        for call, place in zip(calls, fused._places(), strict=True):
            place[:] = _like(model, call.x)
        return fused

    def spread(self) -> None:
        for call, place in zip(self.calls, self._places(), strict=True):
            _flat(call.x)[:] = _like(call.x, place)

    def _places(self) -> list[Any]:
        places, start = [], 0
        for call in self.calls:
            places.append(self.flat[start : start + count_of(call.x)])
            start += count_of(call.x)
        return places


def _run_together(communicator: Collectives, calls: list[Request]) -> None:
    fused = [_Fused.of(batch) for batch in _batches(calls)]
    inside = {id(call) for batch in fused for call in batch.calls}
    requests = [batch.calls[0]._replace(x=batch.flat) for batch in fused]
    requests += [call for call in calls if id(call) not in inside]
    failures: list[Exception] = []
    works: list[Work[None]] = []
    try:
        for call in requests:
            works.append(communicator._start(call, None))
    except Exception as error:
        failures.append(error)
    for work in works:
        try:
            work.wait()
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]
    for batch in fused:
        batch.spread()


def _batches(calls: list[Request]) -> list[list[Request]]:
    """The calls that are fused: equal but for their arrays, in order, at least two."""
    open_batches: dict[Any, list[Request]] = {}
    closed: list[list[Request]] = []
    for call in calls:
        if not _fusable(call):
            continue
        key = (_dtype_name(call.x), *call[3:9], call.order)
        batch = open_batches.setdefault(key, [])
        if sum(nbytes_of(other.x) for other in batch) + nbytes_of(call.x) > FUSED_BYTES:
            closed.append(batch)
            batch = open_batches[key] = []
        batch.append(call)
    return [batch for batch in [*closed, *open_batches.values()] if len(batch) > 1]


def _fusable(call: Request) -> bool:
    """Whether copying to and fro does what the call does; the engine finds the words for what is wrong."""
    x = call.x
    if call.collective != "all_reduce" or call.out is not None or nbytes_of(x) > SMALL_BYTES:
        return False
    if is_torch(x):
        return bool(x.device.type == "cpu" and x.is_contiguous())
    memory = memoryview(x)
    return memory.c_contiguous and not memory.readonly


def _dtype_name(x: Any) -> str:
    """ "float32", whatever kind of array."""
    return str(x.dtype if is_torch(x) else np.asarray(x).dtype).removeprefix("torch.")


def _flat(x: Any) -> Any:
    """The elements in a row, in the same memory."""
    return x.detach().reshape(-1) if is_torch(x) else np.asarray(x).reshape(-1)


def _like(model: Any, x: Any) -> Any:
    """The elements of x in a row, as the kind of array that `model` is."""
    if is_torch(model) == is_torch(x):
        return _flat(x)
    return _flat(x).numpy() if is_torch(x) else model.new_tensor(_flat(x))
