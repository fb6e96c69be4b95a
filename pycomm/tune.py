"""`python -m pycomm.launch -n N -m pycomm.tune`: measure the algorithms on this machine and this group.

Every algorithm that serves a collective is timed over sizes, in turns, on buffers that were rewritten before
each call; a time is that of the worst rank, a point the median of its calls. Prices are fitted to all points.
Both are written to a table (pycomm/tuned.py) that `init()` reads from then on: the default one, or the file
that `--write` names and `PYCOMM_TUNED` later. Groups of other sizes or transports are measured apart and kept
in the same file.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pycomm
from pycomm import _core, fit, tuned
from pycomm.errors import InvalidArgument
from pycomm.explain import shown_bytes
from pycomm.plans import COLLECTIVES

REDUCING = ("all_reduce", "reduce_scatter", "reduce")
SIZES = tuple(8 << shift for shift in range(0, 25, 3))  # 8 bytes to 128 MiB
TURNS = 5  # of each algorithm at a size
FIT_SHARE = 0.1  # of the time
FIT_S = 3.0  # seconds that the fit may take in any case; it needs less than one for few ranks


@dataclass(frozen=True)
class Point:
    """A collective at a size, with all that serve it there."""

    collective: str
    dtype: str
    nbytes: int
    algorithms: tuple[str, ...]

    @property
    def half(self) -> bool:
        return self.dtype == "float16"


Times = dict[Point, dict[str, float]]  # median seconds by algorithm


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Collective."""
    parser = argparse.ArgumentParser(
        prog="python -m pycomm.launch -n N -m pycomm.tune",
        description="Measures which algorithm is the fastest, by size, and keeps the table.",
    )
    add = parser.add_argument
    add(
        "--seconds",
        type=float,
        default=60.0,
        help="for all of it; what is left of longer vectors then is not measured (default %(default)s)",
    )
    add("--write", type=Path, metavar="FILE", help=f"the table (default {tuned.default_path()})")
    add("--collectives", default=",".join(COLLECTIVES), help="by comma (default: all)")
    add(
        "--max",
        type=int,
        default=SIZES[-1],
        metavar="BYTES",
        help="of the largest vector (default %(default)s)",
    )
    options = parser.parse_args(arguments)
    names = options.collectives.split(",")
    unknown = [name for name in names if name not in COLLECTIVES]
    if unknown or options.seconds <= 0 or options.max < SIZES[0]:
        parser.error(
            f"expected collectives of {', '.join(COLLECTIVES)}, --seconds above 0, --max from {SIZES[0]}"
        )
    path = options.write or Path(os.environ.get("PYCOMM_TUNED") or tuned.default_path())
    # An unusable table of before must not keep init() from running.
    os.environ.pop("PYCOMM_TUNED", None)
    comm = pycomm.init()
    if comm.size == 1:
        print(
            "one rank has nothing to choose: start several, with python -m pycomm.launch -n N",
            file=sys.stderr,
        )
        return 2
    begin = time.monotonic()
    times = measure(comm, names, options.max, options.seconds * (1 - FIT_SHARE))
    if comm.rank == 0:
        group = group_of(comm, times, max(begin + options.seconds, time.monotonic() + FIT_S))
        tuned.write(path, tuned.merged(_earlier(path), group))
        print(report(times))
        print(f"\n{len(times)} points in {time.monotonic() - begin:.0f} s; written: {path}")
    comm.barrier(timeout=max(60.0, options.seconds))
    return 0


def measure(comm: pycomm.Communicator, collectives: Sequence[str], largest: int, seconds: float) -> Times:
    """Median times of all algorithms at all points, the same on all ranks. Collective; takes that long."""
    points = list(points_of(comm, collectives, largest))
    bench = _Bench(comm, max(point.nbytes for point in points))
    end = time.monotonic() + seconds
    times: Times = {}
    for number, point in enumerate(points):
        # All ranks must make as many calls: rank 0's clock decides.
        left = float(comm.broadcast(np.array([end - time.monotonic()]))[0])
        if left > 0:
            times[point] = bench.measure(point, left / (len(points) - number))
    return times


def points_of(comm: pycomm.Communicator, collectives: Sequence[str], largest: int) -> Iterator[Point]:
    """From short to long, so that what is left of the time goes where calls are long."""
    for nbytes in (size for size in SIZES if size <= largest):
        for collective in collectives:
            for dtype in ("float32", "float16") if collective in REDUCING else ("float32",):
                explained = comm.explain(collective, nbytes, dtype)
                # Those that round at every hop are measured too: they are only not preferred.
                serving = [one.name for one in explained.candidates if one.model_s > 0]
                yield Point(collective, dtype, nbytes, tuple(serving))


class _Bench:
    """Times points on buffers that all of them share."""

    def __init__(self, comm: pycomm.Communicator, largest: int) -> None:
        self._comm = comm
        # A part for every rank even of the shortest vector, and room for what rounding up adds.
        self._memory = [comm.empty(largest + 8 * comm.size, np.uint8) for _ in range(2)]

    def measure(self, point: Point, seconds: float) -> dict[str, float]:
        """Median seconds by algorithm. Collective."""
        calls = {name: self._call(point, name) for name in point.algorithms}
        begin = time.perf_counter()
        found = {name: self._time(call, 2)[1:] for name, call in calls.items()}
        # A call with all that goes with it, on the slowest rank.
        each = float(self._worst(np.array([time.perf_counter() - begin]))[0]) / (2 * len(calls))
        affordable = seconds / each / len(calls) - 2  # further calls of each
        turns = int(np.clip(affordable / 2, 0, TURNS))
        for _ in range(turns):
            for name, call in calls.items():
                # The first call of a turn brings its code back into the caches.
                found[name] += self._time(call, int(np.clip(affordable / turns, 2, 40)))[1:]
        return {name: float(np.median(self._worst(np.array(all_)))) for name, all_ in found.items()}

    def _time(self, call: tuple[Callable[[], Any], Callable[[], Any]], count: int) -> list[float]:
        run, rewrite = call
        seconds = []
        for _ in range(count):
            rewrite()
            self._comm.barrier()
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
        return seconds

    def _worst(self, seconds: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
        worst: np.ndarray[Any, np.dtype[np.float64]] = self._comm.all_reduce(seconds, op="max")
        return worst

    def _call(self, point: Point, algorithm: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        comm, item = self._comm, np.dtype(point.dtype).itemsize
        part = -(-point.nbytes // item // comm.size) or 1
        first, second = (memory[: part * comm.size * item].view(point.dtype) for memory in self._memory)
        split = {"reduce_scatter", "scatter"}, {"all_gather", "gather"}
        x = first[:part] if point.collective in split[1] else first
        out = second[:part] if point.collective in split[0] else second
        options = {"algorithm": algorithm}
        method = getattr(comm, point.collective)
        at_root = comm.rank == 0
        calls: dict[str, Callable[[], Any]] = {
            "all_reduce": lambda: method(x, **options),
            "broadcast": lambda: method(x, **options),
            "reduce_scatter": lambda: method(x, out=out, **options),
            "all_gather": lambda: method(x, out=out, **options),
            "all_to_all": lambda: method(x, out=out, **options),
            "reduce": lambda: method(x, out=out if at_root else None, **options),
            "gather": lambda: method(x, out=out if at_root else None, **options),
            "scatter": lambda: method(x if at_root else None, out=out, **options),
        }

        def rewrite() -> None:
            x.fill(1)
            out.fill(0)

        return calls[point.collective], rewrite


def group_of(comm: pycomm.Communicator, times: Times, deadline: float) -> dict[str, Any]:
    """What a table says of this group: the times, and the prices fitted to them."""
    facts = _core.group_facts(comm._core)
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for point, by_algorithm in times.items():
        key = (point.collective, 2 if point.half else 4)
        row = rows.setdefault(key, {"bytes": [], "seconds": {name: [] for name in by_algorithm}})
        row["bytes"].append(point.nbytes)
        for name, seconds in by_algorithm.items():
            row["seconds"][name].append(float(f"{seconds:.4g}"))
    samples = [
        fit.Sample(point.collective, name, point.nbytes, point.half, seconds)
        for point, by_algorithm in times.items()
        for name, seconds in by_algorithm.items()
    ]
    prices = fit.prices(comm._core, samples, deadline)
    return {
        "ranks": comm.size,
        "ranks_per_machine": facts["ranks_per_machine"],
        "links": facts["links"],
        "prices": {name: float(f"{value:.4g}") for name, value in prices.items()},
        "times": [{"collective": name, "width": width, **row} for (name, width), row in rows.items()],
    }


def report(times: Times) -> str:
    """The fastest at each size, with its time."""
    lines = []
    for collective, dtype in dict.fromkeys((point.collective, point.dtype) for point in times):
        best = []
        for point, by_algorithm in times.items():
            if (point.collective, point.dtype) == (collective, dtype):
                name = min(by_algorithm, key=lambda one: by_algorithm[one])
                best.append(f"{shown_bytes(point.nbytes)} {name} {by_algorithm[name] * 1e6:.4g} us")
        lines.append(f"{collective} of {dtype}: " + ", ".join(best))
    return "\n".join(lines)


def _earlier(path: Path) -> dict[str, Any] | None:
    """The table to add to; one that cannot be used is replaced."""
    if not path.exists():
        return None
    try:
        return tuned.read(path)
    except InvalidArgument as error:
        print(f"replaced: {error}", file=sys.stderr)
        return None


if __name__ == "__main__":
    sys.exit(main())
