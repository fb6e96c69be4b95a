"""The programs of docs/migration.md run as they stand, and print the same before and after."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers import ROOT, run, script

pytest.importorskip("torch")

PAGE = (ROOT / "docs" / "migration.md").read_text()
BLOCKS = dict(re.findall(r"```python\n# ((?:before|after): .*?)\n(.*?)```", PAGE, re.DOTALL))
DDP = [
    "before: torch.distributed on gloo",
    "after: torch.distributed on pycomm",
    "after: pycomm's own DataParallel",
]
SAME = {"DDP": DDP, "mpi4py": ["before: mpi4py", "after: pycomm"], "any framework": ["after: any framework"]}


def test_every_program_of_the_page_is_run() -> None:
    assert sorted(BLOCKS) == sorted(name for names in SAME.values() for name in names)


@pytest.mark.long
@pytest.mark.timeout(100)
@pytest.mark.parametrize("names", SAME.values(), ids=SAME)
def test_what_is_printed_before_and_after_is_equal(names: list[str], tmp_path: Path) -> None:
    printed = set()
    for name in names:
        outcome = run(2, script(tmp_path, BLOCKS[name]), env={"GLOO_SOCKET_IFNAME": "lo"})
        assert outcome.status == 0, outcome
        lines = outcome.stdout.splitlines()
        assert len(lines) == 2
        printed |= set(lines)
    assert len(printed) == 1
