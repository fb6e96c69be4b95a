"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import pycomm
from pycomm.testing import run_threads
from tests.helpers import ROOT, run

README = (ROOT / "README.md").read_text()


def block_with(text: str) -> str:
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if text in block]
    return str(block)


def test_the_loop_learns_the_same_on_any_number_of_ranks(tmp_path: Path) -> None:
    program = tmp_path / "loop.py"
    program.write_text(block_with("DataParallel"))
    losses = set()
    for ranks in (1, 3):
        outcome = run(ranks, program, limit_s=60)
        assert outcome.status == 0, outcome
        lines = outcome.stdout.split("\n")
        found = [line.rsplit(": ", 1)[1] for line in lines if line.startswith("rank ")]
        assert len(found) == ranks
        losses |= set(found)
    assert len(losses) == 1
    assert float(losses.pop()) < 0.5


@pytest.mark.parametrize(
    "call", re.findall(r"^(?:\w+ = )?comm\.[^#\n]*", block_with("comm.split"), re.MULTILINE)
)
def test_every_call_shown_works_on_two_ranks(call: str) -> None:
    def shown(comm: pycomm.Communicator) -> None:
        x = np.arange(6, dtype=np.float32)
        names = {"comm": comm, "x": x, "part": np.array_split(x, 2)[comm.rank]}
        if "comm.send" not in call:
            exec(call, names)
            return
        broadcast, send, recv, barrier = call.split("; ")
        exec(broadcast, names)
        exec(send if comm.rank == 0 else recv, names)
        exec(barrier, names)

    run_threads(2, shown)


def test_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
