"""What the trainer's tests share: one compute thread, and no test without a time limit."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the trainer needs torch")

TIME_LIMIT_S = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = str(__file__).rpartition("/")[0]
    for item in items:
        if str(item.path).startswith(here) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIME_LIMIT_S))


@pytest.fixture(autouse=True)
def one_compute_thread() -> None:
    torch.set_num_threads(1)
