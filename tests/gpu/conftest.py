"""These tests need a card, so `make test` leaves them out (pyproject.toml) and `make gpu-test` runs them."""

from __future__ import annotations

import pytest

from pycomm.cuda import why_not


@pytest.fixture(autouse=True, scope="session")
def a_card() -> None:
    """Without one nothing here passes."""
    if why := why_not():
        pytest.fail(why)
