"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

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


def test_the_calls_shown_work_on_two_ranks() -> None:
    source = block_with("comm.split")
    pair = "comm.send(x, 1); comm.recv(x, 0)"
    assert source.count(pair) == 1

    def shown(comm: pycomm.Communicator) -> None:
        x, y = np.arange(6, dtype=np.float32), np.ones(4, np.float32)
        names = {"comm": comm, "np": np, "x": x, "y": y, "n": 3 * comm.rank}
        exec(source.replace(pair, pair.split("; ")[comm.rank]), names)
        assert len(names["full"]) == 6
        assert (names["whole"] is None) == (comm.rank == 1)
        assert names["counts"].tolist() == [0, 3]
        assert (y == 2).all()

    run_threads(2, shown)


def test_the_messages_shown_arrive() -> None:
    create, *lines = block_with("comm.mailbox").splitlines()
    send = [line for line in lines if ".send(" in line]
    receive = [line for line in lines if ".send(" not in line]
    assert len(send) == 1 and len(receive) == 2

    def shown(comm: pycomm.Communicator) -> None:
        names = {"comm": comm, "x": np.arange(3), "y": np.ones(2)}
        for line in [create, *(send if comm.rank == 0 else receive)]:
            exec(line, names)
        if comm.rank == 1:
            content = names["message"].content
            assert (names["message"].source, content["step"]) == (0, 3)
            assert [array.tolist() for array in content["gradients"]] == [[0, 1, 2], [1, 1]]

    run_threads(2, shown)


def test_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
