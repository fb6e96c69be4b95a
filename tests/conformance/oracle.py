"""What a call must yield, computed with NumPy from all ranks' inputs.

Exact data are integers whose sums, products and averages no format on the way rounds: the result is known
to the bit. Random data round, and the result lies within an error that is derived here, not guessed.

Elements of bfloat16 are kept as their bits (uint16): NumPy has no such type.
"""

from __future__ import annotations

import functools
import threading
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import pycomm
from tests.conformance.cases import FLOATS, ITEM_BYTES, LOSSY, Kind

Array = npt.NDArray[Any]

STORED: dict[str, type[np.generic]] = {
    "f64": np.float64,
    "f32": np.float32,
    "f16": np.float16,
    "bf16": np.uint16,
    "i64": np.int64,
    "i32": np.int32,
    "u8": np.uint8,
    "i8": np.int8,
}


@dataclass(frozen=True)
class Format:
    """A floating type."""

    unit: float  # half the distance from 1 to the next number
    smallest: float  # positive number
    largest: float
    integers: int  # all up to this are exact


FORMATS = {
    "f64": Format(2.0**-53, 2.0**-1074, float(np.finfo(np.float64).max), 2**53),
    "f32": Format(2.0**-24, 2.0**-149, float(np.finfo(np.float32).max), 2**24),
    "f16": Format(2.0**-11, 2.0**-24, 65504.0, 2**11),
    "bf16": Format(2.0**-8, 2.0**-133, 2.0**127, 2**8),
}
# As the registered codecs say; their integers are exact as far as the unit allows.
WIRES = {
    name: Format(row["unit"], row["smallest"], row["largest"], round(1 / row["unit"]))
    for name, row in pycomm.info()["codecs"].items()
    if name in LOSSY
}


def narrowest(kind: Kind) -> Format:
    """The coarsest format that a value passes."""
    return WIRES.get(kind.codec, FORMATS[kind.dtype])


def rounds_contributions(kind: Kind) -> bool:
    """Whether each rank scales and rounds its own contribution, instead of the sum being scaled."""
    return kind.dtype in ("f16", "bf16") or kind.codec in LOSSY


def total_scale(kind: Kind, size: int) -> float:
    return kind.scale * (1.0 / size if kind.op == "avg" else 1.0)


# ---- conversions


def widened(dtype: str, stored: Array) -> Array:
    """The same numbers in a type that NumPy computes in."""
    if dtype == "bf16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32) if dtype == "f16" else stored


def rounded(dtype: str, numbers: Array) -> Array:
    """Numbers rounded to a dtype, to nearest even, as it is stored."""
    if dtype != "bf16":
        return numbers.astype(STORED[dtype])
    bits = numbers.astype(np.float32).view(np.uint32)
    up = ((bits >> 16) & 1) + np.uint32(0x7FFF)
    nearest = ((bits + up) >> 16).astype(np.uint16)
    return np.where(np.isnan(numbers), np.uint16(0x7FC0), nearest)


# ---- inputs


def inputs(kind: Kind, count: int, size: int) -> list[Array]:
    """Every rank's contribution, as stored."""
    random = np.random.default_rng(zlib.crc32(f"{kind} {count} {size}".encode()))
    if kind.data == "bits":
        drawn = random.integers(0, 256, (size, count * ITEM_BYTES[kind.dtype]), np.uint8)
        return [row.view(STORED[kind.dtype]) for row in drawn]
    make = {"exact": _exact_inputs, "random": _random_inputs, "special": _special_inputs}[kind.data]
    numbers = make(kind, count, size, random)
    return [rounded(kind.dtype, row) for row in numbers]


def _exact_inputs(kind: Kind, count: int, size: int, random: np.random.Generator) -> Array:
    if kind.op == "prod":
        return _exact_factors(kind, count, size)
    if kind.dtype in FLOATS:
        largest = narrowest(kind).integers
        low = -largest
    else:
        largest = int(np.iinfo(STORED[kind.dtype]).max)
        low = int(np.iinfo(STORED[kind.dtype]).min)
    if kind.op in ("min", "max"):
        return random.integers(low, largest, (size, count), np.int64, endpoint=True)
    # No sum of several passes the largest.
    steps = random.integers(-(-low // size), largest // size, (size, count), np.int64, endpoint=True)
    if not (kind.dtype in FLOATS and rounds_contributions(kind)):
        return steps
    # Multiples of what contributions are divided by.
    return steps * (size if kind.op == "avg" else 1) * round(1 / kind.scale)


def _exact_factors(kind: Kind, count: int, size: int) -> Array:
    rank, element = np.indices((size, count))
    factors = np.where((rank + element) % 3 == 0, 2, 1)
    if kind.dtype == "u8":
        return factors
    return factors * np.where((5 * rank + element) % 4 == 1, -1, 1)


def _random_inputs(kind: Kind, count: int, size: int, random: np.random.Generator) -> Array:
    mantissas = random.uniform(1.0, 2.0, (size, count)) * random.choice([-1.0, 1.0], (size, count))
    if kind.op == "prod":
        return mantissas * 2.0 ** random.integers(-1, 1, (size, count))
    exponents = random.integers(-12, 12, (size, count)).astype(np.float64)
    place = np.arange(count) % 7
    # Some sums come near to overflow, and some near to nothing; none overflows.
    limits = narrowest(kind)
    exponents[:, place == 3] = np.floor(np.log2(limits.largest / size)) - 2
    exponents[:, place == 5] = np.log2(limits.smallest) + random.integers(
        0, 4, (size, int((place == 5).sum()))
    )
    return np.ldexp(mantissas, exponents.astype(np.int64))


def _special_inputs(kind: Kind, count: int, size: int, random: np.random.Generator) -> Array:
    values = [0.0, -0.0, 1.0, -1.0, 2.5, np.inf, -np.inf, np.nan]
    weights = np.array([4, 4, 2, 2, 2, 1, 1, 1], float)
    drawn = random.choice(values, (size, count), p=weights / weights.sum())
    if narrowest(kind).integers < 64:
        drawn[drawn == 2.5] = 2.0  # sums of it need more digits
    if kind.op != "sum":
        drawn[drawn == 2.5] = FORMATS[kind.dtype].smallest
    return drawn


# ---- results


@dataclass(frozen=True)
class Expected:
    values: Array  # stored; of random data: longdouble
    error: Array | None = None  # by element, how far a result may be away; None: not at all


def expected(kind: Kind, xs: list[Array], algorithm: str) -> Expected:
    """The reduction of all ranks' contributions."""
    if kind.data == "random" and kind.op not in ("min", "max"):
        return _rounded_reduction(kind, xs, algorithm)
    numbers = [widened(kind.dtype, x) for x in xs]
    if kind.op in ("min", "max"):
        return Expected(rounded(kind.dtype, _extreme(kind.op, numbers)))
    if kind.dtype in FLOATS:
        return Expected(rounded(kind.dtype, _float_reduction(kind, numbers)))
    return Expected(_integer_reduction(kind, xs))


def _integer_reduction(kind: Kind, xs: list[Array]) -> Array:
    if kind.op == "prod":
        return np.multiply.reduce(xs, dtype=STORED[kind.dtype])
    total = np.add.reduce(xs, dtype=STORED[kind.dtype])
    if kind.op != "avg":
        return total
    size = total.dtype.type(len(xs))
    return total // size + ((total < 0) & (total % size != 0)).astype(total.dtype)  # toward zero


def _float_reduction(kind: Kind, numbers: list[Array]) -> Array:
    """Of numbers that no step but the last rounds."""
    if kind.op == "prod":
        return functools.reduce(np.multiply, numbers)
    with np.errstate(invalid="ignore"):  # inf - inf
        total = functools.reduce(np.add, numbers)
    scale = total_scale(kind, len(numbers))
    return total if scale == 1 else total * total.dtype.type(scale)


def _extreme(op: str, numbers: list[Array]) -> Array:
    """NaN wins, and -0 < +0."""
    pick = np.minimum if op == "min" else np.maximum
    result = functools.reduce(pick, numbers)
    if not np.issubdtype(result.dtype, np.floating):
        return result
    # NumPy takes either zero. The extreme of the signs decides.
    zeros = [np.where(x == 0, np.copysign(1.0, x), -1.0 if op == "max" else 1.0) for x in numbers]
    sign = functools.reduce(pick, zeros)
    return np.where(result == 0, np.copysign(np.zeros_like(result), sign), result)


def _rounded_reduction(kind: Kind, xs: list[Array], algorithm: str) -> Expected:
    exact = [widened(kind.dtype, x).astype(np.longdouble) for x in xs]
    size = len(xs)
    if kind.op == "prod":
        result = functools.reduce(np.multiply, exact)
        magnitude = np.abs(result)
    else:
        scale = total_scale(kind, size)
        result = functools.reduce(np.add, exact) * np.longdouble(scale)
        magnitude = functools.reduce(np.add, map(np.abs, exact)) * np.longdouble(scale)
    relative, absolute = error_bound(kind, size, algorithm)
    return Expected(result, magnitude * relative + absolute)


def error_bound(kind: Kind, size: int, algorithm: str) -> tuple[float, float]:
    """(relative to the sum of the magnitudes, absolute) error of a sum, or of a product relative to itself.

    On its way into the result a contribution is multiplied by (1 + d) at every rounding, |d| being at most
    the unit of the format rounded to:
      - in 16 bits: direct and mapped round it once when it leaves and the sum once, hierarchical_direct the
        sum of its node and the sum; else every message or stored partial sum that it is part of rounds it,
        which are at most `size`;
      - in the format that sums are computed in (f64 for f64, else f32): at most size - 1 additions, the
        scale and its conversion, and size more because a partial sum may be scaled on the way;
      - in the long double of this oracle: as many.
    A rounding to a denormal instead errs by at most half the smallest number, and the sum of all of those
    adds up.
    """
    # A product is multiplied by the roundings of all its nodes.
    once = ("direct", "mapped") if kind.op == "prod" else ("direct", "mapped", "hierarchical_direct")
    short = (2 if algorithm in once else max(size, 2)) if rounds_contributions(kind) else 0
    computed = FORMATS["f64" if kind.dtype == "f64" else "f32"]
    growth = (
        (1 + narrowest(kind).unit) ** short
        * (1 + computed.unit) ** (2 * size + 2)
        * (1 + float(np.finfo(np.longdouble).eps)) ** (size + 2)
    )
    absolute = (short * size + 2) * max(narrowest(kind).smallest, computed.smallest)
    # A number above 1 by less than the unit of double is 1 to Python: the bound in units of f64 is summed
    # up instead.
    return max(growth - 1, (2 * size + 4) * FORMATS["f64"].unit), absolute


# ---- comparing


def first_error(kind: Kind, got: Array, want: Expected) -> str:
    """Where a result is wrong and how; empty when it is right."""
    if kind.data == "bits":
        bits = f"u{ITEM_BYTES[kind.dtype]}"
        wrong = got.view(bits) != want.values.view(bits)
    elif want.error is not None:
        distance = np.abs(widened(kind.dtype, got).astype(np.longdouble) - want.values)
        wrong = ~(distance <= want.error)
    else:
        wrong = _differ(widened(kind.dtype, got), widened(kind.dtype, want.values))
    if not wrong.any():
        return ""
    i = int(np.argmax(wrong))
    if want.error is None:
        wanted = f"{widened(kind.dtype, want.values)[i]!r}"
    else:
        wanted = f"{want.values[i]!r} within {float(want.error[i]):.3g}"
    found = f"{widened(kind.dtype, got)[i]!r}"
    return f"{int(wrong.sum())} of {len(got)} elements are wrong, first [{i}]: {found}, expected {wanted}"


def _differ(a: Array, b: Array) -> Array:
    if not np.issubdtype(a.dtype, np.floating):
        return a != b
    same = (a == b) & (np.signbit(a) == np.signbit(b))
    return ~(same | (np.isnan(a) & np.isnan(b)))


class Oracle:
    """Remembers what it has computed; ranks that are threads share one. Threads: any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inputs = functools.lru_cache(64)(inputs)
        self._expected = functools.lru_cache(64)(self._compute)

    def inputs(self, kind: Kind, count: int, size: int) -> list[Array]:
        with self._lock:
            return self._inputs(kind, count, size)

    def expected(self, kind: Kind, count: int, size: int, algorithm: str) -> Expected:
        # Algorithms differ in their error bounds only.
        named = algorithm if kind.data == "random" else ""
        with self._lock:
            return self._expected(kind, count, size, named)

    def _compute(self, kind: Kind, count: int, size: int, algorithm: str) -> Expected:
        return expected(kind, self._inputs(kind, count, size), algorithm)
