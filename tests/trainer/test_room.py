"""Which strategy a dry run says there is room for."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer import FitConfig
from trainer.dry_run import dry_run
from trainer.memory import STRATEGIES
from trainer.room import advice, available_bytes

GB = 10**9
HELD = {"data_parallel": 16 * GB, "zero1": 10 * GB, "zero2": 7 * GB}


@pytest.mark.parametrize(
    ("available", "said"),
    [
        (
            68,
            "of 4 ranks on this machine, with 68.0 GB available, all have room with data_parallel (and zero1",
        ),
        (67, "all have room with zero1 (and zero2)"),
        (32, "all have room with zero2 (each needs 1.0 GB for libraries"),
        (31, "3 have room with zero2, and no more with any other: use more machines"),
        (0, "0 have room"),
    ],
)
def test_the_first_strategy_with_room_for_all_ranks_is_named(available: int, said: str) -> None:
    assert said in advice(HELD, 4, GB, available * GB)


def test_unknown_memory_is_no_promise() -> None:
    assert "does not tell" in advice(HELD, 4, GB, None)


def test_the_container_s_limit_counts_where_it_is_less(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    assert available_bytes(meminfo, tmp_path) is None
    meminfo.write_text("MemTotal:  9000 kB\nMemAvailable:    4000 kB\n")
    assert available_bytes(meminfo, tmp_path) == 4000 * 1024
    (tmp_path / "memory.current").write_text("1000000\n")
    for limit, expected in (("max", 4096000), ("9000000", 4096000), ("1500000", 500000), ("900000", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert available_bytes(meminfo, tmp_path) == expected


def test_a_dry_run_ends_with_the_advice() -> None:
    last = dry_run(FitConfig(data="linear", model="linear"), 2).splitlines()[-1]
    assert last.startswith("of 2 ranks on this machine, with ")
    assert f"all have room with {STRATEGIES[0]}" in last
