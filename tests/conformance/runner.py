"""Runs cases on one rank, a thread or a process, and judges what all ranks brought back.

Eight neighbouring cases are in flight at once, then eight run one after the other, and so on. Around every
array lie bytes that must not change. About half of the arrays lie in memory of `comm.empty`, on each rank
others.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pycomm import Communicator
from tests.conformance.cases import ITEM_BYTES, Case
from tests.conformance.oracle import STORED, Array, Expected, Oracle, first_error
from tests.conformance.parts import chosen_parts, equal_parts, places

IN_FLIGHT = 8
MARGIN = 64  # bytes
UNTOUCHED = 0xA5
MAX_FAILURES = 20

Empty = Callable[[int, Any], Any]  # (count, dtype) to an array
# (dtype, count, shift, content) to memory; for arrays that are somewhere else
Place = Callable[[str, int, int, "Array | None"], "Memory"]


@dataclass
class Report:
    """What one rank did."""

    count: int = 0
    digests: list[bytes] = field(default_factory=list)  # by case: of what must be equal on all ranks
    barriers: list[tuple[float, float]] = field(default_factory=list)  # when it came and when it left
    failures: list[str] = field(default_factory=list)


class Memory:
    """An array that begins `shift` bytes after a 64-byte boundary, between margins."""

    def __init__(
        self, empty: Empty, dtype: str, count: int, shift: int, content: Array | None = None
    ) -> None:
        self._bytes = count * ITEM_BYTES[dtype]
        self._raw = empty(self._bytes + shift + 64 + 2 * MARGIN, np.uint8)
        self._raw[:] = UNTOUCHED
        self._start = -(-(self._raw.ctypes.data + MARGIN) // 64) * 64 + shift - self._raw.ctypes.data
        inside = self._raw[self._start : self._start + self._bytes]
        self.stored: Array = inside.view(STORED[dtype])
        self.array = _as_bf16(inside) if dtype == "bf16" else self.stored
        if content is not None:
            self.stored[:] = content

    def publish(self) -> None:
        """Before the call: brings what was stored to where the call finds it."""

    def refresh(self) -> None:
        """After it: the reverse."""

    def margins_changed(self) -> bool:
        end = self._start + self._bytes
        return bool((self._raw[: self._start] != UNTOUCHED).any() or (self._raw[end:] != UNTOUCHED).any())


def _as_bf16(inside: Array) -> Any:
    if inside.size == 0:
        return torch.empty(0, dtype=torch.bfloat16)
    return torch.frombuffer(inside.data, dtype=torch.bfloat16)


class Running:
    """A case that was started: what it waits for and how it is judged."""

    def __init__(
        self, case: Case, comm: Communicator, number: int, oracle: Oracle, place: Place | None = None
    ) -> None:
        self.case = case
        self.size = comm.size
        self.rank = comm.rank
        self.oracle = oracle
        self._empty: Empty = comm.empty
        self._place = place
        self._choices = random.Random(f"{number} {comm.rank}")
        self.works: list[Any] = []
        self.judge: Callable[[], bytes] = lambda: b""
        self.memories: list[Memory] = []
        self.faults: list[str] = []
        self.times: tuple[float, float] | None = None

    def memory(self, count: int, content: Array | None = None) -> Memory:
        empty = self._choices.choice((self._empty, np.empty))
        where = self.case.kind.dtype, count, self.case.placement.shift, content
        made = self._place(*where) if self._place else Memory(empty, *where)
        self.memories.append(made)
        return made

    def contributions(self) -> list[Array]:
        return self.oracle.inputs(self.case.kind, self.case.count, self.size)

    def reduction(self) -> Expected:
        return self.oracle.expected(self.case.kind, self.case.count, self.size, self.case.algorithm)

    def compare(self, got: Array, want: Expected, what: str = "result") -> None:
        fault = first_error(self.case.kind, got, want)
        if fault:
            self.faults.append(f"{what}: {fault}")

    def unchanged(self, got: Array, was: Array, what: str) -> None:
        if got.tobytes() != was.tobytes():
            self.faults.append(f"{what} was changed")

    def publish(self) -> None:
        for memory in self.memories:
            memory.publish()

    def finish(self) -> bytes:
        for work in self.works:
            work.wait()
        for memory in self.memories:
            memory.refresh()
        digest = self.judge()
        if any(memory.margins_changed() for memory in self.memories):
            self.faults.append("memory outside the arrays was changed")
        return digest


def run_cases(
    comm: Communicator, cases: Sequence[Case], oracle: Oracle, place: Place | None = None
) -> Report:
    report = Report()
    batches = [cases[i : i + IN_FLIGHT] for i in range(0, len(cases), IN_FLIGHT)]
    for i, batch in enumerate(batches):
        blocking = i % 2 == 1
        started: list[Running] = []
        for case in batch:
            running = Running(case, comm, report.count + len(started), oracle, place)
            _guarded(case, comm, START[case.collective], comm, running, blocking)
            if blocking:
                _conclude(comm, running, report)
            else:
                started.append(running)
        for running in started:
            _conclude(comm, running, report)
    return report


def _guarded(case: Case, comm: Communicator, act: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return act(*arguments)
    except Exception as error:
        raise AssertionError(
            f"rank {comm.rank} of {comm.size}, {case}: {type(error).__name__}: {error}"
        ) from error


def _conclude(comm: Communicator, running: Running, report: Report) -> None:
    digest = _guarded(running.case, comm, running.finish)
    report.count += 1
    report.digests.append(hashlib.blake2b(digest, digest_size=16).digest() if digest else b"")
    if running.times:
        report.barriers.append(running.times)
    for fault in running.faults:
        if len(report.failures) < MAX_FAILURES:
            report.failures.append(f"rank {comm.rank} of {comm.size}, {running.case}: {fault}")


# ---- how each collective is called and judged


def _call(comm: Communicator, running: Running, blocking: bool, *arrays: Any, **options: Any) -> None:
    name = running.case.collective
    running.publish()
    if blocking:
        getattr(comm, name)(*arrays, **options)
    else:
        running.works.append(getattr(comm, f"{name}_async")(*arrays, **options))


def _reduction_options(case: Case) -> dict[str, Any]:
    kind = case.kind
    taken = {name: getattr(kind, name) for name in ("op", "codec", "scale", "order")}
    return {**taken, "algorithm": case.algorithm}


def _all_reduce(comm: Communicator, running: Running, blocking: bool) -> None:
    case, mine = running.case, running.contributions()[comm.rank]
    x = running.memory(case.count, mine)
    out = x if case.placement.in_place else running.memory(case.count)
    given = None if case.placement.in_place else out.array
    _call(comm, running, blocking, x.array, out=given, **_reduction_options(case))

    def judge() -> bytes:
        running.compare(out.stored, running.reduction())
        if out is not x:
            running.unchanged(x.stored, mine, "the input")
        return out.stored.tobytes()

    running.judge = judge


def parts_of(case: Case, size: int) -> list[int]:
    return chosen_parts(case.count, size, 0) if case.chosen else equal_parts(case.count, size)


def _part_options(case: Case, size: int) -> dict[str, Any]:
    return {"counts": parts_of(case, size)} if case.chosen else {}


def _reduce_scatter(comm: Communicator, running: Running, blocking: bool) -> None:
    case, mine = running.case, running.contributions()[comm.rank]
    part = places(parts_of(case, comm.size))[comm.rank]
    x = running.memory(case.count, mine)
    if case.placement.in_place:
        result, given = x.stored[part], x.array[part]
    else:
        out = running.memory(part.stop - part.start)
        result, given = out.stored, out.array
    options = {**_reduction_options(case), **_part_options(case, comm.size)}
    _call(comm, running, blocking, x.array, out=given, **options)

    def judge() -> bytes:
        whole = running.reduction()
        running.compare(
            result, Expected(whole.values[part], whole.error if whole.error is None else whole.error[part])
        )
        rest = mine.copy()
        if case.placement.in_place:
            rest[part] = result
        running.unchanged(x.stored, rest, "the input")
        return b""

    running.judge = judge


def _reduce(comm: Communicator, running: Running, blocking: bool) -> None:
    case, mine = running.case, running.contributions()[comm.rank]
    x = running.memory(case.count, mine)
    apart = comm.rank == case.root and not case.placement.in_place
    out = running.memory(case.count) if apart else x
    given = out.array if apart else None
    _call(comm, running, blocking, x.array, case.root, out=given, **_reduction_options(case))

    def judge() -> bytes:
        if comm.rank == case.root:
            running.compare(out.stored, running.reduction())
        if comm.rank != case.root or apart:
            running.unchanged(x.stored, mine, "the input")
        return b""

    running.judge = judge


def _gather(comm: Communicator, running: Running, blocking: bool) -> None:
    """Of all_gather every rank is a root."""
    case, whole = running.case, running.contributions()[0]
    part = places(parts_of(case, comm.size))[comm.rank]
    gets = case.collective == "all_gather" or comm.rank == case.root
    out = running.memory(case.count) if gets else None
    if out and case.placement.in_place:
        out.stored[part] = whole[part]
        given = out.array[part]
    else:
        given = running.memory(part.stop - part.start, whole[part]).array
    options = {"algorithm": case.algorithm, **_part_options(case, comm.size)}
    if case.collective == "gather":
        options["root"] = case.root
    _call(comm, running, blocking, given, out=out.array if out else None, **options)

    def judge() -> bytes:
        if out:
            running.compare(out.stored, Expected(whole))
        return out.stored.tobytes() if out and case.collective == "all_gather" else b""

    running.judge = judge


def _scatter(comm: Communicator, running: Running, blocking: bool) -> None:
    case, whole = running.case, running.contributions()[0]
    part = places(parts_of(case, comm.size))[comm.rank]
    x = running.memory(case.count, whole) if comm.rank == case.root else None
    if x and case.placement.in_place:
        result, given = x.stored[part], x.array[part]
    else:
        out = running.memory(part.stop - part.start)
        result, given = out.stored, out.array
    options = {"algorithm": case.algorithm, "root": case.root, **_part_options(case, comm.size)}
    _call(comm, running, blocking, x.array if x else None, out=given, **options)

    def judge() -> bytes:
        running.compare(result, Expected(whole[part]))
        if x:
            running.unchanged(x.stored, whole, "the input")
        return b""

    running.judge = judge


def _all_to_all(comm: Communicator, running: Running, blocking: bool) -> None:
    """Every rank cuts its vector in its own way, where sizes are chosen."""
    case, xs, size = running.case, running.contributions(), comm.size
    cuts = [
        chosen_parts(case.count, size, rank) if case.chosen else equal_parts(case.count, size)
        for rank in range(size)
    ]
    blocks = [x[places(parts)[comm.rank]] for x, parts in zip(xs, cuts, strict=True)]
    want = np.concatenate(blocks)
    mine, out = running.memory(case.count, xs[comm.rank]), running.memory(len(want))
    options: dict[str, Any] = {"algorithm": case.algorithm}
    if case.chosen:
        options |= {"counts": cuts[comm.rank], "received": [len(block) for block in blocks]}
    _call(comm, running, blocking, mine.array, out=out.array, **options)

    def judge() -> bytes:
        running.compare(out.stored, Expected(want))
        running.unchanged(mine.stored, xs[comm.rank], "the input")
        return b""

    running.judge = judge


def _broadcast(comm: Communicator, running: Running, blocking: bool) -> None:
    case, roots = running.case, running.contributions()[running.case.root]
    x = running.memory(case.count, roots if comm.rank == case.root else None)
    _call(comm, running, blocking, x.array, root=case.root, algorithm=case.algorithm)

    def judge() -> bytes:
        running.compare(x.stored, Expected(roots))
        return x.stored.tobytes()

    running.judge = judge


def _send(comm: Communicator, running: Running, blocking: bool) -> None:
    case, xs = running.case, running.contributions()
    before = (comm.rank - 1) % comm.size
    mine, incoming = running.memory(case.count, xs[comm.rank]), running.memory(case.count)
    running.publish()
    running.works.append(comm.recv_async(incoming.array, before))
    _call(comm, running, blocking, mine.array, (comm.rank + 1) % comm.size)

    def judge() -> bytes:
        running.compare(incoming.stored, Expected(xs[before]))
        running.unchanged(mine.stored, xs[comm.rank], "what was sent")
        return b""

    running.judge = judge


def _barrier(comm: Communicator, running: Running, blocking: bool) -> None:
    came = time.monotonic()
    _call(comm, running, blocking)

    def judge() -> bytes:
        # The work's own time: with several in flight this line may be reached long after.
        left = running.works[0].finished_s if running.works else time.monotonic()
        running.times = (came, left)
        return b""

    running.judge = judge


START: dict[str, Callable[[Communicator, Running, bool], None]] = {
    "all_reduce": _all_reduce,
    "reduce_scatter": _reduce_scatter,
    "reduce": _reduce,
    "all_gather": _gather,
    "gather": _gather,
    "scatter": _scatter,
    "all_to_all": _all_to_all,
    "broadcast": _broadcast,
    "send": _send,
    "barrier": _barrier,
}


def judge(cases: Sequence[Case], reports: Sequence[Report]) -> list[str]:
    """What went wrong over all ranks; `reports` in order of rank."""
    faults = list(itertools.chain.from_iterable(report.failures for report in reports))
    for rank, report in enumerate(reports):
        if report.count != len(cases):
            faults.append(f"rank {rank} ran {report.count} of {len(cases)} cases")
    for case, *digests in zip(cases, *(report.digests for report in reports), strict=False):
        if len(set(digests)) > 1:
            faults.append(f"{case}: the ranks end with different bits: {[d.hex()[:8] for d in digests]}")
    for i, times in enumerate(zip(*(report.barriers for report in reports), strict=False)):
        if max(came for came, _ in times) > min(left for _, left in times):
            faults.append(f"barrier {i}: a rank left before the last one came")
    return faults[:MAX_FAILURES]
