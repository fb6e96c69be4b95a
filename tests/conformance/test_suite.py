"""The suite notices what it must: wrong bits, ranks that differ, stray writes, entries without a case."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from pycomm import Communicator
from pycomm.testing import run_threads
from tests.conformance.cases import Case, Kind, Placement, Scope, cases, coverage_faults
from tests.conformance.oracle import (
    FORMATS,
    WIRES,
    Oracle,
    error_bound,
    expected,
    first_error,
    inputs,
    on_wire,
    rounded,
    widened,
)
from tests.conformance.runner import IN_FLIGHT, Report, judge, run_cases
from tests.conformance.scopes import SMALL_BYTES, registry

SUM = Case("all_reduce", "ring", Kind("f32"), 31, Placement(False, 1))
ROUNDED = replace(SUM, kind=Kind("f32", data="random"))
Lie = Callable[[Any], None]


class Lying:
    """A communicator that spoils what its operations write."""

    def __init__(self, comm: Communicator, lie: Lie) -> None:
        self.rank, self.size, self.empty = comm.rank, comm.size, comm.empty
        self._comm = comm
        self._lie = lie

    def all_reduce(self, x: Any, out: Any, **options: Any) -> Any:
        self._comm.all_reduce(x, out=out, **options)
        self._lie(out)

    def all_reduce_async(self, x: Any, out: Any, **options: Any) -> Any:
        work = self._comm.all_reduce_async(x, out=out, **options)

        return SpoiltWork(work, lambda: self._lie(out))


@dataclass
class SpoiltWork:
    work: Any
    spoil: Callable[[], None]

    def wait(self) -> None:
        self.work.wait()
        self.spoil()


def flip_last_bit(array: Any) -> None:
    array.view(np.uint8)[0] ^= 1


def write_before(array: Any) -> None:
    ctypes.memset(array.ctypes.data - 1, 0, 1)


def faults_of(
    case: Case, lie: Lie | None, liars: tuple[int, ...] = (1,), repeat: int = 2 * IN_FLIGHT
) -> list[str]:
    def rank(comm: Any) -> Report:
        return run_cases(Lying(comm, lie) if lie and comm.rank in liars else comm, [case] * repeat, Oracle())

    return judge([case] * repeat, run_threads(2, rank))


def test_right_results_have_no_faults() -> None:
    assert faults_of(SUM, None) == []
    assert faults_of(ROUNDED, None) == []


def test_a_wrong_bit_of_an_exact_sum_is_seen_in_flight_and_blocking() -> None:
    faults = faults_of(SUM, flip_last_bit)
    assert sum("rank 1 of 2" in fault and "first [0]" in fault for fault in faults) == 2 * IN_FLIGHT


def test_ranks_that_differ_within_the_error_bound_are_seen() -> None:
    faults = faults_of(ROUNDED, flip_last_bit)
    assert faults and all("different bits" in fault for fault in faults)


def test_a_stray_byte_is_seen() -> None:
    assert any("outside the arrays" in fault for fault in faults_of(SUM, write_before))


def test_a_rank_that_ran_fewer_cases_is_seen() -> None:
    assert judge([SUM], [Report(1, [b""]), Report(0)])


def test_an_exception_names_the_case() -> None:
    with pytest.raises(AssertionError, match=r"rank \d of 2, all_reduce:nothing f32 x 31"):
        faults_of(replace(SUM, algorithm="nothing"), None)


@pytest.mark.parametrize(
    "entry",
    ["scan:ring", "barrier:tree"],
    ids=["a collective", "a second algorithm of a call without choice"],
)
def test_an_entry_that_no_case_can_name_fails(entry: str) -> None:
    known = registry()
    row = {"mapped": False, "lossy_codecs": True, "uneven": True, "orders": [], "summary": ""}
    larger = replace(known, algorithms={**known.algorithms, entry: row}, supports=lambda name, size: True)
    with pytest.raises(AssertionError, match=r"cases\.py"):
        cases(larger, 2, "inproc", Scope("pairs", SMALL_BYTES))


def test_a_new_codec_must_say_how_it_rounds() -> None:
    known = registry()
    with pytest.raises(AssertionError, match="codec zip"):
        cases(replace(known, codecs=[*known.codecs, "zip"]), 2, "inproc", Scope("pairs", SMALL_BYTES))


def test_a_case_left_out_is_a_coverage_fault() -> None:
    scope = Scope("algorithms", SMALL_BYTES)
    made = [case for case in cases(registry(), 2, "inproc", scope) if case.algorithm != "ring"]
    assert "algorithm all_reduce:ring is registered and no case names it" in coverage_faults(
        made, registry(), 2, "inproc", scope
    )


def test_an_order_that_no_case_asks_for_is_a_coverage_fault() -> None:
    scope = Scope("algorithms", SMALL_BYTES)
    made = cases(registry(), 2, "inproc", scope)
    kept = [case for case in made if (case.algorithm, case.kind.order) != ("halving_doubling", "tree")]
    assert coverage_faults(made, registry(), 2, "inproc", scope) == []
    assert coverage_faults(kept, registry(), 2, "inproc", scope) == [
        "order tree of all_reduce:halving_doubling is registered and no case names it"
    ]


# ---- the oracle itself


@pytest.mark.parametrize(
    ("dtype", "codec", "data"),
    [("f32", "none", "random"), ("f32", "fp16", "cancelling"), ("bf16", "none", "cancelling")],
)
def test_a_sum_in_another_order_is_seen(dtype: str, codec: str, data: str) -> None:
    kinds = [Kind(dtype, "sum", codec, order=order, data=data) for order in ("rank", "tree")]
    xs = inputs(kinds[0], 1000, 4)
    rank, tree = (expected(kind, xs, "") for kind in kinds)
    assert first_error(kinds[0], rank.values, rank) == ""
    assert first_error(kinds[0], tree.values, rank) != ""
    assert first_error(kinds[0], expected(kinds[0], xs[::-1], "").values, rank) != ""


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_on_a_wire_are_rounded_as_numpy_and_torch_do(dtype: Any) -> None:
    bits = np.random.default_rng(2).integers(0, 2**32, 20_000, np.uint64).astype(np.uint32)
    numbers = bits.view(np.float32)[np.isfinite(bits.view(np.float32))].astype(dtype)
    with np.errstate(over="ignore"):
        halves = numbers.astype(np.float16).astype(dtype)
        np.testing.assert_array_equal(on_wire(WIRES["fp16"], numbers), halves)
    bf16 = torch.from_numpy(numbers.astype(np.float32)).to(torch.bfloat16).to(torch.float64).numpy()
    np.testing.assert_array_equal(on_wire(WIRES["bf16"], numbers), bf16.astype(dtype))


def test_rounding_to_bfloat16_is_torchs() -> None:
    bits = np.random.default_rng(1).integers(0, 2**32, 20_000, np.uint64).astype(np.uint32)
    numbers = bits.view(np.float32)
    theirs = torch.from_numpy(numbers.copy()).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    ours = rounded("bf16", numbers)
    nan = np.isnan(numbers)
    assert (ours[~nan] == theirs[~nan]).all()
    assert np.isnan(widened("bf16", ours)[nan]).all()


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_a_sum_rounded_at_every_hop_keeps_the_bound_and_twice_the_bound_does_not(
    dtype: str, size: int
) -> None:
    kind = Kind(dtype, data="random")
    xs = inputs(kind, 5003, size)
    total = xs[0]
    for x in xs[1:]:
        total = rounded(dtype, widened(dtype, total) + widened(dtype, x))
    want = expected(kind, xs, "ring")
    assert first_error(kind, total, want) == ""
    assert want.error is not None
    too_far = rounded(dtype, (want.values + 2 * want.error).astype(np.float32))
    assert first_error(kind, too_far, want) != ""


def test_the_bounds_are_those_of_the_numerics() -> None:
    relative, _ = error_bound(Kind("f16", data="random"), 4, "direct")
    assert FORMATS["f16"].unit < relative < 2.01 * FORMATS["f16"].unit
    relative, _ = error_bound(Kind("f32", "sum", "bf16", data="random"), 4, "ring")
    assert relative < 4.1 * FORMATS["bf16"].unit
    relative, _ = error_bound(Kind("f32", data="random"), 4, "ring")
    assert relative < 11 * FORMATS["f32"].unit
