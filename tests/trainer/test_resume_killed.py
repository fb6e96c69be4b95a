"""A job of two processes that is killed with SIGKILL and started again; more by `make chaos-checkpoint`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.chaos_checkpoint import compare, killed, newest, run


@pytest.mark.long
def test_a_job_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    run(tmp_path / "expected", 30)
    out = tmp_path / "killed"
    assert killed(out, 30, "none", after_rows=5, then_s=0)
    assert 0 < newest(out) < 30
    run(out, 30, "auto")
    compare(out, tmp_path / "expected")
