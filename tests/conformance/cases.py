"""Which calls the conformance suite makes: generated from the registries, the same on every rank.

Words
    kind        what is computed: dtype, op, codec, scale, data
    placement   where the arrays lie: in place or not, and by how many bytes they miss alignment
    chosen      the sizes of the parts are given, unequal and some of them zero (tests/conformance/parts.py)
    level       "full"        crosses algorithms, kinds, counts and placements
                "triples"     crosses algorithms, kinds and counts; placements take turns along them
                "pairs"       takes of those so many that any two of algorithm, kind, count, placement and
                              root have met
                "algorithms"  takes of those so many that every algorithm has met every kind, count,
                              placement and root

A registered algorithm or codec that no case names makes the suite fail (`coverage_faults`), and so does one
whose collective or rounding unit this file does not know.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pycomm

FLOATS = ("f64", "f32", "f16", "bf16")
INTEGERS = ("i64", "i32", "u8", "i8")
DTYPES = FLOATS + INTEGERS
ITEM_BYTES = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "i64": 8, "i32": 4, "u8": 1, "i8": 1}
OPS = ("sum", "prod", "min", "max", "avg")

_CODECS = pycomm.info()["codecs"]
LOSSLESS = {name for name, row in _CODECS.items() if row["lossless"]}
# Codecs that round, and half the distance from 1 to the next number that they can carry.
LOSSY = {name: row["unit"] for name, row in _CODECS.items() if row["unit"]}

# Collectives whose parts may have chosen sizes.
PARTED = ("reduce_scatter", "all_gather", "gather", "scatter", "all_to_all")

# A first message carries its data behind its header when both fit in 4096 bytes.
INLINE_BYTES = 4096 - 40

SMALL_BYTES = 64  # of segments, where many cost little


@dataclass(frozen=True)
class Kind:
    dtype: str
    op: str = "sum"
    codec: str = "none"
    scale: float = 1.0
    order: str = "any"
    # "random" and "cancelling" round; "special": NaN, infinities, zeros of both signs; "bits": any bits
    data: str = "exact"


@dataclass(frozen=True)
class Placement:
    in_place: bool
    shift: int  # bytes


@dataclass(frozen=True)
class Case:
    collective: str
    algorithm: str
    kind: Kind
    count: int  # elements of the whole vector
    placement: Placement
    root: int = 0
    chosen: bool = False  # parts of chosen sizes

    def __str__(self) -> str:
        k, p = self.kind, self.placement
        return (
            f"{self.collective}:{self.algorithm} {k.dtype} x {self.count}, op {k.op}, codec {k.codec}, "
            f"order {k.order}, scale {k.scale}, root {self.root}, {k.data} data, "
            f"{'chosen parts, ' if self.chosen else ''}"
            f"{'in place' if p.in_place else 'out of place'}, shifted by {p.shift}"
        )


@dataclass(frozen=True)
class Registry:
    """What is registered, in the words of `pycomm.info()`."""

    algorithms: Mapping[str, Mapping[str, Any]]  # by "collective:name"
    codecs: Iterable[str]
    transports: Mapping[str, Mapping[str, Any]]
    supports: Callable[[str, int], bool]

    def usable(self, collective: str, size: int, transport: str) -> list[str]:
        """Short names of the algorithms of a collective that serve so many ranks over a transport."""
        names = []
        for full, row in self.algorithms.items():
            of, _, short = full.partition(":")
            if (
                of == collective
                and self.supports(full, size)
                and (not row["mapped"] or self.transports[transport]["mapped"] or size == 1)
            ):
                names.append(short)
        return names

    def uneven(self, collective: str, names: list[str]) -> list[str]:
        """Those of an operation's algorithms that serve parts of chosen sizes."""
        return [name for name in names if self.algorithms[f"{collective}:{name}"]["uneven"]]

    def carries(self, collective: str, algorithm: str, codec: str) -> bool:
        return codec in LOSSLESS or bool(self.algorithms[f"{collective}:{algorithm}"]["lossy_codecs"])

    def serves(self, collective: str, algorithm: str, kind: Kind) -> bool:
        row = self.algorithms[f"{collective}:{algorithm}"]
        rounds = ITEM_BYTES[kind.dtype] == 2 or kind.codec not in LOSSLESS
        in_order = kind.order in row["orders"] and (row["rounds_once"] or not rounds)
        return self.carries(collective, algorithm, kind.codec) and (kind.order == "any" or in_order)


@dataclass(frozen=True)
class Scope:
    """How much is crossed, and which counts are awkward."""

    level: str
    segment_bytes: int  # that the ranks will use

    def counts(self, dtype: str, size: int) -> list[int]:
        item = ITEM_BYTES[dtype]
        segment = self.segment_bytes // item
        if self.segment_bytes <= SMALL_BYTES:
            # The last: every chunk of every rank takes several segments, the last one not full.
            return sorted({0, 1, size - 1, size + 1, 31, 3 * segment * size + 5})
        edge = INLINE_BYTES // item
        return sorted({size - 1, 251, edge, edge * size + 1})

    def long_count(self, dtype: str, size: int) -> int:
        """More than a segment in every chunk."""
        return (self.segment_bytes // ITEM_BYTES[dtype] + 3) * size + 1


def reducing_kinds(codecs: Iterable[str]) -> list[Kind]:
    kinds = [Kind(dtype, op) for dtype in DTYPES for op in OPS]
    # 0.1 has no exact form, 0.5 keeps 16-bit sums exact.
    kinds += [
        Kind(dtype, op, scale=0.1 if dtype in ("f64", "f32") else 0.5)
        for dtype in FLOATS
        for op in ("sum", "avg")
    ]
    kinds += [Kind(dtype, op, data="random") for dtype in FLOATS for op in ("sum", "avg", "prod")]
    kinds += [Kind(dtype, "sum", scale=0.3, data="random") for dtype in FLOATS]
    kinds += [Kind(dtype, op, data="special") for dtype in FLOATS for op in ("sum", "min", "max")]
    for codec in codecs:
        if codec in LOSSLESS:
            continue
        assert codec in LOSSY, f"codec {codec} is registered, and does not say how it rounds"
        for dtype in ("f64", "f32"):
            kinds += [Kind(dtype, op, codec, scale) for op in ("sum", "avg") for scale in (1.0, 0.5)]
            kinds += [Kind(dtype, op, codec, data="random") for op in ("sum", "avg")]
            kinds += [
                Kind(dtype, "sum", codec, scale=0.3, data="random"),
                Kind(dtype, "sum", codec, data="special"),
            ]
    return kinds


def orders(size: int) -> list[str]:
    """Those in which so many ranks can be added."""
    return ["rank", "tree"] if size & (size - 1) == 0 else ["rank"]


def ordered_kinds(codecs: Iterable[str], size: int, scope: Scope) -> list[Kind]:
    """Sums that round, whose bits only the order decides. Long segments take a few of them."""
    kinds = [Kind(dtype, "sum", scale=0.3, data="cancelling") for dtype in FLOATS]
    kinds += [Kind("f32", "sum", codec, 0.3, data="cancelling") for codec in codecs if codec not in LOSSLESS]
    if scope.level == "full" or scope.segment_bytes == SMALL_BYTES:
        kinds += [Kind(dtype, op, data="random") for dtype in FLOATS for op in OPS if op != "sum"]
        kinds += [Kind(dtype, op) for dtype in INTEGERS for op in OPS]
        kinds += [Kind(dtype, "sum", data="special") for dtype in ("f32", "bf16")]
        for codec in codecs:
            if codec not in LOSSLESS:
                kinds += [Kind(dtype, "avg", codec, data="random") for dtype in ("f64", "f32")]
                kinds += [Kind("f64", "sum", codec, 0.3, data="cancelling")]
    return [replace(kind, order=order) for order in orders(size) for kind in kinds]


def moving_kinds() -> list[Kind]:
    return [Kind(dtype, data="bits") for dtype in DTYPES]


def placements(dtype: str) -> list[Placement]:
    # Odd addresses, and even ones that are not those of vectors.
    shifts = (0, 1) if ITEM_BYTES[dtype] == 1 else (0, 1, ITEM_BYTES[dtype])
    return [Placement(in_place, shift) for shift in shifts for in_place in (True, False)]


def cases(registry: Registry, size: int, transport: str, scope: Scope) -> list[Case]:
    """Neighbours often have one kind, so that the algorithms that are in flight together differ."""
    turn = itertools.count()
    found: list[Case] = []
    for collective in sorted({name.partition(":")[0] for name in registry.algorithms}):
        generate = _GENERATORS.get(collective)
        assert generate, f"collective {collective} is registered, and cases.py makes no case for it"
        made = list(generate(registry, size, transport, scope, turn))
        found += _thinned(made, PAIRS[scope.level]) if scope.level in PAIRS else made
    return found


def _thinned(made: list[Case], pairs_of: Callable[[Case], set[Any]]) -> list[Case]:
    """Enough of the cases of one collective for every pair that any of them has."""
    order = list(range(len(made)))
    random.Random(len(made)).shuffle(order)  # equal on all ranks
    seen: set[Any] = set()
    taken = []
    for i in order:
        pairs = pairs_of(made[i])
        if not pairs <= seen:
            seen |= pairs
            taken.append(i)
    return [made[i] for i in sorted(taken)]


def _values(case: Case) -> list[Any]:
    return [
        ("algorithm", case.algorithm),
        case.kind,
        ("count", case.count),
        case.placement,
        ("root", case.root),
        ("chosen", case.chosen),
    ]


def any_two(case: Case) -> set[Any]:
    return set(itertools.combinations(_values(case), 2))


def algorithm_and_another(case: Case) -> set[Any]:
    algorithm, *others = _values(case)
    return {(algorithm, other) for other in others}


PAIRS: dict[str, Callable[[Case], set[Any]]] = {"pairs": any_two, "algorithms": algorithm_and_another}


def _crossed(
    collective: str,
    algorithms: Sequence[str],
    kind: Kind,
    counts: Sequence[int],
    scope: Scope,
    turn: Iterator[int],
    root: int = 0,
    chosen: bool = False,
) -> Iterator[Case]:
    for count, algorithm in itertools.product(counts, algorithms):
        every = placements(kind.dtype)
        taken = every if scope.level == "full" else [every[next(turn) % len(every)]]
        for placement in taken:
            yield Case(collective, algorithm, kind, count, placement, root, chosen)
    next(turn)  # placements and counts must not keep step


def _reducing(collective: str) -> Callable[..., Iterator[Case]]:
    def generate(
        registry: Registry, size: int, transport: str, scope: Scope, turn: Iterator[int]
    ) -> Iterator[Case]:
        names = registry.usable(collective, size, transport)
        for kind in ordered_kinds(registry.codecs, size, scope):
            able = [name for name in names if registry.serves(collective, name, kind)]
            long = (*scope.counts(kind.dtype, size)[-2:], scope.long_count(kind.dtype, size))
            yield from _crossed(collective, able, kind, [long[next(turn) % 3]], scope, turn)
        for kind in reducing_kinds(registry.codecs):
            able = [name for name in names if registry.serves(collective, name, kind)]
            yield from _crossed(collective, able, kind, scope.counts(kind.dtype, size), scope, turn)
            if (
                kind.dtype in ("f32", "i8")
                and kind.op == "sum"
                and kind.data != "special"
                and kind.scale == 1
            ):
                yield from _crossed(collective, able, kind, [scope.long_count(kind.dtype, size)], scope, turn)

    return generate


def _chosen_reduce_scatters(
    registry: Registry, size: int, transport: str, scope: Scope, turn: Iterator[int]
) -> Iterator[Case]:
    names = registry.uneven("reduce_scatter", registry.usable("reduce_scatter", size, transport))
    kinds = [Kind("f32"), Kind("i8", "max"), Kind("f16", "avg"), Kind("f64", "sum", "fp16", 0.5)]
    kinds += [Kind("f32", "avg", codec, 1.0, orders(size)[-1], "random") for codec in ("none", "fp16")]
    for kind in kinds:
        able = [name for name in names if registry.serves("reduce_scatter", name, kind)]
        counts = scope.counts(kind.dtype, size)
        yield from _crossed("reduce_scatter", able, kind, counts, scope, turn, chosen=True)


def _reduce_scatters(*arguments: Any) -> Iterator[Case]:
    yield from _reducing("reduce_scatter")(*arguments)
    yield from _chosen_reduce_scatters(*arguments)


def _reduces(*arguments: Any) -> Iterator[Case]:
    """The root takes turns: which it is matters to the plan, not to the arithmetic."""
    size = arguments[1]
    for i, case in enumerate(_reducing("reduce")(*arguments)):
        yield replace(case, root=(0, size // 2, size - 1)[i % 3])


def roots_of(collective: str, size: int) -> list[int]:
    return sorted({0, size // 2, size - 1}) if collective in ("gather", "scatter") else [0]


def _moving(collective: str) -> Callable[..., Iterator[Case]]:
    """Of collectives whose parts travel and nothing is computed."""

    def generate(
        registry: Registry, size: int, transport: str, scope: Scope, turn: Iterator[int]
    ) -> Iterator[Case]:
        names = registry.usable(collective, size, transport)
        for kind, root, chosen in itertools.product(
            moving_kinds(), roots_of(collective, size), (False, True)
        ):
            counts = [*scope.counts(kind.dtype, size), scope.long_count(kind.dtype, size)]
            if collective in ("gather", "scatter") and not chosen:
                counts = [count // size * size for count in counts]  # what equal parts must be there
            able = registry.uneven(collective, names) if chosen else names
            for case in _crossed(collective, able, kind, counts, scope, turn, root, chosen):
                apart = replace(case.placement, in_place=False)
                yield replace(case, placement=apart) if collective == "all_to_all" else case

    return generate


def _broadcasts(
    registry: Registry, size: int, transport: str, scope: Scope, turn: Iterator[int]
) -> Iterator[Case]:
    for kind, root in itertools.product(moving_kinds(), sorted({0, size // 2, size - 1})):
        counts = [*scope.counts(kind.dtype, size), scope.long_count(kind.dtype, size)]
        for case in _crossed(
            "broadcast", registry.usable("broadcast", size, transport), kind, counts, scope, turn, root
        ):
            yield replace(case, placement=Placement(True, case.placement.shift))


# Each rank sends to the next one and receives from the one before: one case serves both collectives.
def _sends(
    registry: Registry, size: int, transport: str, scope: Scope, turn: Iterator[int]
) -> Iterator[Case]:
    _only_algorithm(registry, "send")
    _only_algorithm(registry, "recv")
    for kind in moving_kinds():
        counts = [*scope.counts(kind.dtype, size), scope.long_count(kind.dtype, size)]
        yield from _crossed("send", registry.usable("send", size, transport), kind, counts, scope, turn)


# Calls that take no algorithm: which of several ran could not be told.
def _only_algorithm(registry: Registry, collective: str) -> None:
    names = [name for name in registry.algorithms if name.startswith(collective + ":")]
    assert len(names) == 1, f"{names}: {collective}() takes no algorithm, so cases.py cannot run each"


def _recvs(*_: Any) -> Iterator[Case]:
    return iter(())


def _barriers(
    registry: Registry, size: int, transport: str, scope: Scope, turn: Iterator[int]
) -> Iterator[Case]:
    _only_algorithm(registry, "barrier")
    for algorithm in registry.usable("barrier", size, transport):
        for _ in range(5):
            yield Case("barrier", algorithm, Kind("u8"), 0, Placement(True, 0))


_GENERATORS: dict[str, Callable[..., Iterator[Case]]] = {
    "all_reduce": _reducing("all_reduce"),
    "reduce_scatter": _reduce_scatters,
    "reduce": _reduces,
    "all_gather": _moving("all_gather"),
    "gather": _moving("gather"),
    "scatter": _moving("scatter"),
    "all_to_all": _moving("all_to_all"),
    "broadcast": _broadcasts,
    "send": _sends,
    "recv": _recvs,
    "barrier": _barriers,
}


def covered(made: Iterable[Case]) -> set[str]:
    """What these cases exercise: "algorithm all_reduce:ring", "codec fp16", "dtype f32", ..."""
    names = set()
    for case in made:
        names |= {
            f"algorithm {case.collective}:{case.algorithm}",
            f"codec {case.kind.codec}",
            f"dtype {case.kind.dtype}",
        }
        if case.kind.order != "any":
            names.add(f"order {case.kind.order} of {case.collective}:{case.algorithm}")
        if case.chosen:
            names.add(f"chosen parts of {case.collective}:{case.algorithm}")
        if case.collective == "send":
            names.add(f"algorithm recv:{case.algorithm}")
    return names


def required(registry: Registry, size: int, transport: str) -> set[str]:
    """What cases on so many ranks over this transport must exercise."""
    names = {f"dtype {dtype}" for dtype in DTYPES} | {f"codec {codec}" for codec in registry.codecs}
    for full in registry.algorithms:
        collective, _, short = full.partition(":")
        if short in registry.usable(collective, size, transport):
            names.add(f"algorithm {full}")
            claimed = registry.algorithms[full]["orders"]
            names |= {f"order {order} of {full}" for order in claimed if order in orders(size)}
            if collective in PARTED and registry.algorithms[full]["uneven"]:
                names.add(f"chosen parts of {full}")
    return names


def least_count(registry: Registry, size: int, transport: str, scope: Scope) -> int:
    """How many cases the registries imply at least: the kinds and counts that algorithms must meet."""
    total = 0
    for collective, kinds in (
        ("all_reduce", reducing_kinds(registry.codecs)),
        ("reduce_scatter", reducing_kinds(registry.codecs)),
        ("reduce", reducing_kinds(registry.codecs)),
        ("all_gather", moving_kinds()),
        ("gather", moving_kinds()),
        ("scatter", moving_kinds()),
        ("all_to_all", moving_kinds()),
        ("broadcast", moving_kinds()),
        ("send", moving_kinds()),
    ):
        for kind in kinds:
            able = [
                a
                for a in registry.usable(collective, size, transport)
                if registry.carries(collective, a, kind.codec)
            ]
            counts = len(scope.counts(kind.dtype, size))
            total += (
                len(able) * (1 if scope.level == "algorithms" else counts)
                if scope.level != "pairs"
                else min(1, len(able)) * counts
            )
    return total


def coverage_faults(
    made: Sequence[Case], registry: Registry, size: int, transport: str, scope: Scope
) -> list[str]:
    """What these cases leave out; nothing when they are as many and as varied as the registries imply."""
    faults = [
        f"{name} is registered and no case names it"
        for name in sorted(required(registry, size, transport) - covered(made))
    ]
    least = least_count(registry, size, transport, scope)
    if len(made) < least:
        faults.append(f"{len(made)} cases; the registries imply at least {least}")
    return faults
