"""Every algorithm, codec, dtype and op between ranks that are threads."""

from __future__ import annotations

import pytest

from pycomm.testing import run_threads
from tests.conformance.cases import cases, coverage_faults
from tests.conformance.oracle import Oracle
from tests.conformance.runner import judge, run_cases
from tests.conformance.scopes import FULL, RUNNERS, THREADS, environment, registry, scopes

LIMIT_S = 3600 if FULL else 60


def test_every_registered_transport_has_a_runner() -> None:
    assert set(registry().transports) == set(RUNNERS)


@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize("size", THREADS)
@pytest.mark.parametrize("transport", [name for name, sizes in RUNNERS.items() if sizes == THREADS])
def test_threads(transport: str, size: int, monkeypatch: pytest.MonkeyPatch, tally: list[str]) -> None:
    for scope in scopes(transport, size):
        for name, value in environment(scope).items():
            monkeypatch.setenv(name, value)
        made = cases(registry(), size, transport, scope)
        reports = run_threads(size, run_cases, made, Oracle(), timeout=LIMIT_S, transport=transport)
        tally.append(f"{size} ranks over {transport}, {scope}: {len(made)} cases")
        assert coverage_faults(made, registry(), size, transport, scope) == []
        assert judge(made, reports) == []
