"""The stop-watch: contenders take turns in one run, so that what drifts on a shared machine hits all alike.

A *call* is the timed thing. Before each, the contender rewrites its buffers, as a training step does, and the
ranks meet at a barrier. The time of a call is the longest that any rank took. A *turn* is a few calls of one
contender in a row, after some untimed ones that bring its code back into the caches; turns go round, at least
ten times unless time runs out, until the medians are settled or the budget is spent.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from bench.errors import BenchError
from bench.ranks import Ranks, Times

MIN_CALLS = 5  # however little time there is
MIN_ROUNDS = 10  # of turns, unless time runs out
SETTLED_CALLS = 30
SETTLED_WIDTH = 0.03  # of the median: the width of its confidence interval


@dataclass(frozen=True)
class Contender:
    """What is timed under a name. `rewrite` runs, untimed, before each call."""

    name: str
    call: Callable[[], object]
    rewrite: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Budget:
    """How long one measurement may take."""

    seconds: float  # for all its contenders together
    iterations: int  # timed calls of each contender, at most
    warmup: int = 1  # untimed calls at the start of a turn
    turn_s: float = 0.02  # timed calls of a turn add up to about this

    def __post_init__(self) -> None:
        if not self.seconds > 0 or self.iterations < 1 or self.warmup < 0:
            got = f"{self.seconds}, {self.iterations} and {self.warmup}"
            raise BenchError(f"expected --seconds above 0, --iters from 1 and --warmup from 0, got {got}")


def measure(contenders: Sequence[Contender], ranks: Ranks, budget: Budget) -> dict[str, Times]:
    """Seconds of every timed call by contender, each the worst over ranks; the same on all ranks. Blocks."""
    worst: dict[str, Times] = {contender.name: np.empty(0) for contender in contenders}
    end = time.monotonic() + budget.seconds
    for round_number in count(1):
        for contender in contenders:
            so_far = worst[contender.name]
            calls = turn_calls(so_far, budget)
            if calls:
                times = ranks.worst(_turn(contender, ranks, budget.warmup, calls))
                worst[contender.name] = np.append(so_far, times)
        short = any(len(times) < min(MIN_CALLS, budget.iterations) for times in worst.values())
        full = all(len(times) >= budget.iterations or settled(times) for times in worst.values())
        enough = full and round_number >= MIN_ROUNDS
        if ranks.agree(enough or (not short and time.monotonic() > end)):
            break
    return worst


def turn_calls(so_far: Times, budget: Budget) -> int:
    """How many calls the next turn has: one in the first round, then as many as fit into its time."""
    fitting = 1 if not len(so_far) else max(1, int(budget.turn_s / max(float(np.median(so_far)), 1e-7)))
    return min(fitting, -(-budget.iterations // MIN_ROUNDS), budget.iterations - len(so_far))


def settled(times: Times) -> bool:
    """Whether the median is known well: its 95 % confidence interval, by order statistics, is narrow."""
    calls = len(times)
    if calls < SETTLED_CALLS:
        return False
    ordered = np.sort(times)
    reach = 0.98 * calls**0.5
    low, high = ordered[int(calls / 2 - reach)], ordered[min(calls - 1, int(calls / 2 + reach) + 1)]
    return bool(high - low <= SETTLED_WIDTH * np.median(ordered))


def percentiles(times: Times, unit_s: float) -> dict[str, float]:
    """p5, p50 and p95 in the given unit, with linear interpolation between calls."""
    low, middle, high = np.percentile(times, (5, 50, 95)) / unit_s
    return {"p5": float(low), "p50": float(middle), "p95": float(high)}


def _turn(contender: Contender, ranks: Ranks, warmup: int, calls: int) -> Times:
    rewrite, barrier, call = contender.rewrite, ranks.barrier, contender.call
    times = np.empty(calls)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for i in range(-warmup, calls):
            rewrite()
            barrier()
            start = time.perf_counter_ns()
            call()
            elapsed = time.perf_counter_ns() - start
            if i >= 0:
                times[i] = elapsed * 1e-9
    finally:
        if collecting:
            gc.enable()
    return times
