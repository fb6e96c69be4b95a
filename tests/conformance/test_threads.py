"""Every algorithm, codec, dtype and op between ranks that are threads."""

from __future__ import annotations

from functools import partial

import pytest

from pycomm.testing import run_threads
from tests.conformance.cases import Scope, cases, coverage_faults
from tests.conformance.on_device import DeviceMemory, placeable
from tests.conformance.oracle import Oracle
from tests.conformance.runner import judge, run_cases
from tests.conformance.scopes import (
    FULL,
    LAYOUTS_OF_THREADS,
    SMALL_BYTES,
    THREADS,
    environment,
    followers,
    registry,
    scopes,
    scopes_of_nodes,
)
from tests.helpers import BETWEEN_THREADS

LIMIT_S = 3600 if FULL else 60


@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize("size", [*THREADS[:-1], pytest.param(THREADS[-1], marks=pytest.mark.long)])
@pytest.mark.parametrize("transport", BETWEEN_THREADS)
def test_threads(transport: str, size: int, monkeypatch: pytest.MonkeyPatch, tally: list[str]) -> None:
    for scope in scopes(transport, size):
        for name, value in environment(scope).items():
            monkeypatch.setenv(name, value)
        made = cases(registry(), size, transport, scope)
        reports = run_threads(size, run_cases, made, Oracle(), timeout=LIMIT_S, transport=transport)
        tally.append(f"{size} ranks over {transport}, {scope}: {len(made)} cases")
        assert coverage_faults(made, registry(), size, transport, scope) == []
        assert judge(made, reports) == []


@pytest.mark.timeout(2 * LIMIT_S)
def test_arrays_on_a_torch_device(monkeypatch: pytest.MonkeyPatch, tally: list[str]) -> None:
    """What tests/gpu does with cards, on the device that every machine has."""
    scope = Scope("algorithms", SMALL_BYTES)
    for name, value in environment(scope).items():
        monkeypatch.setenv(name, value)
    made = [case for case in cases(registry(), 2, "inproc_mapped", scope) if placeable(case)]
    place = partial(DeviceMemory, "cpu")
    reports = run_threads(2, run_cases, made, Oracle(), place, timeout=LIMIT_S, transport="inproc_mapped")
    assert judge(made, reports) == []
    tally.append(f"2 ranks over inproc_mapped, tensors, {scope}: {len(made)} cases")


@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize(("window", "in_flight"), [(1, 1), (7, 16)])
@pytest.mark.parametrize("size", [3, pytest.param(4, marks=pytest.mark.long)])
def test_progress_threads_and_extreme_windows(
    size: int, window: int, in_flight: int, monkeypatch: pytest.MonkeyPatch, tally: list[str]
) -> None:
    """One segment and one collective at a time, and more of both than there are."""
    monkeypatch.setenv("PYCOMM_WINDOW", str(window))
    monkeypatch.setenv("PYCOMM_IN_FLIGHT", str(in_flight))
    scope = Scope("algorithms", SMALL_BYTES)
    for name, value in environment(scope).items():
        monkeypatch.setenv(name, value)
    for transport in BETWEEN_THREADS:
        made = cases(registry(), size, transport, scope)
        reports = run_threads(
            size, run_cases, made, Oracle(), timeout=LIMIT_S, transport=transport, progress="thread"
        )
        assert judge(made, reports) == []
        tally.append(f"{size} ranks over {transport}, window {window}, {scope}: {len(made)} cases")


@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize("nodes", LAYOUTS_OF_THREADS, ids=str)
def test_threads_on_several_nodes(
    nodes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, tally: list[str]
) -> None:
    """Messages are copied between nodes, and memory is addressable within them."""
    size = len(nodes)
    for scope in scopes_of_nodes(size):
        for name, value in environment(scope).items():
            monkeypatch.setenv(name, value)
        made = cases(followers(), size, "inproc", scope)
        reports = run_threads(size, run_cases, made, Oracle(), timeout=LIMIT_S, nodes=nodes)
        tally.append(f"{size} ranks on nodes {nodes}, {scope}: {len(made)} cases")
        assert coverage_faults(made, followers(), size, "inproc", scope) == []
        assert judge(made, reports) == []
