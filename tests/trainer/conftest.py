"""What the trainer's tests share: one compute thread, and no test without a time limit."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # one_process.py

torch = pytest.importorskip("torch", reason="the trainer needs torch")

TIME_LIMIT_S = 120


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIME_LIMIT_S))


@pytest.fixture
def environment() -> dict[str, str]:
    """For processes that tests start: they import from where this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.fixture(autouse=True)
def one_compute_thread() -> None:
    torch.set_num_threads(1)
