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
LIBRARIES = {"lightning": "after: Lightning", "accelerate": "after: Accelerate"}


def test_every_program_of_the_page_is_run() -> None:
    compared = [name for names in SAME.values() for name in names]
    assert sorted(BLOCKS) == sorted([*compared, *LIBRARIES.values()])


@pytest.mark.long
@pytest.mark.timeout(100)
@pytest.mark.parametrize("names", SAME.values(), ids=SAME)
def test_what_is_printed_before_and_after_is_equal(names: list[str], tmp_path: Path) -> None:
    assert len({line for name in names for line in lines(BLOCKS[name], tmp_path)}) == 1


@pytest.mark.long
@pytest.mark.timeout(100)
@pytest.mark.parametrize("library", LIBRARIES)
def test_what_stands_on_torch_distributed_prints_the_same_on_gloo(library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    program = BLOCKS[LIBRARIES[library]]
    on_gloo = program.replace('"pycomm"', '"gloo"')
    assert on_gloo != program
    assert len({*lines(program, tmp_path), *lines(on_gloo, tmp_path)}) == 1


def lines(program: str, folder: Path) -> list[str]:
    """What two ranks print, a line each."""
    outcome = run(2, script(folder, program), env={"GLOO_SOCKET_IFNAME": "lo"})
    assert outcome.status == 0, outcome
    printed = outcome.stdout.splitlines()
    assert len(printed) == 2, outcome
    return printed
