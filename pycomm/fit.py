"""Prices from measured times: least squares on the logarithms, so that 2 us for 1 us counts as 2 s for 1 s.

Levenberg and Marquardt's method ("An algorithm for least-squares estimation of nonlinear parameters", 1963)
with numeric derivatives, in the logarithms of the prices, which keeps them positive. A weak pull to where it
starts decides what the times leave open.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pycomm import _core

Vector = np.ndarray[Any, np.dtype[np.float64]]

PULL = 0.03  # weight of a price's distance from its start, beside that of a time's
CLIP = 1.0  # a time further off than a factor of e counts less and less
STEPS = 60


@dataclass(frozen=True)
class Sample:
    """One measured time."""

    collective: str
    algorithm: str
    nbytes: int
    half: bool
    seconds: float


def prices(core: _core.Communicator, samples: Sequence[Sample], deadline: float) -> dict[str, float]:
    """The prices of this communicator's machine under which its plans take about as long as they did."""
    kinds = set(_core.group_facts(core)["pairs"])
    start = {
        name: value
        for name, value in _core.prices(core).items()
        if name.rpartition(".")[0] in kinds or ("." not in name and value > 0 and name != "byte_coded_s")
    }
    for kind in kinds:
        for what, value in (("latency_s", 1e-6), ("message_s", 1e-6), ("byte_s", 1e-10)):
            start.setdefault(f"{kind}.{what}", value)
    if _core.group_facts(core)["crowd"] <= 1:
        start.pop("switch_s", None)
    names = sorted(start)
    pricers = {key: _core.Pricer(core, *key) for key in {(one.collective, one.algorithm) for one in samples}}
    measured = np.log([one.seconds for one in samples])

    def residuals(logs: Vector) -> Vector:
        tried = dict(zip(names, np.exp(logs).tolist(), strict=True))
        priced = [
            pricers[one.collective, one.algorithm].seconds(one.nbytes, one.half, tried) for one in samples
        ]
        off = np.log(priced) - measured
        both: Vector = np.concatenate([_tamed(off), PULL * (logs - first)])
        return both

    first = np.log([start[name] for name in names])
    best = minimum(residuals, first, deadline)
    return dict(zip(names, np.exp(best).tolist(), strict=True))


def minimum(residuals: Callable[[Vector], Vector], start: Vector, deadline: float) -> Vector:
    """Where the sum of squares is least, near `start`; the best so far when the time is up."""
    at: Vector = start
    here, damping = residuals(start), 1e-2
    for _ in range(STEPS):
        slopes = np.stack([(residuals(at + step) - here) / 1e-4 for step in 1e-4 * np.eye(len(at))], axis=1)
        normal = slopes.T @ slopes
        while damping < 1e6:
            if time.monotonic() > deadline:
                return at
            step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-9), -slopes.T @ here)
            there = residuals(at + np.clip(step, -1, 1))
            if there @ there < here @ here:
                break
            damping *= 4
        else:
            return at
        gained = 1 - (there @ there) / (here @ here)
        at, here, damping = at + np.clip(step, -1, 1), there, damping / 4
        if gained < 1e-4:
            return at
    return at


def _tamed(off: Vector) -> Vector:
    """Residuals whose squares grow linearly beyond CLIP (Huber 1964)."""
    size = np.abs(off)
    root = np.sqrt(np.maximum(2 * CLIP * size - CLIP**2, 0))
    tamed: Vector = np.where(size <= CLIP, off, np.sign(off) * root)
    return tamed
