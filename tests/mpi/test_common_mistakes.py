"""What beginners get wrong, as they would write it: each ends in words that name it, and nothing hangs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

import pycomm
from pycomm.testing import run_threads
from tests.helpers import Outcome, run, script

pytestmark = pytest.mark.timeout(60)


def job(
    folder: Path, source: str, *words: str, ranks: int = 2, env: Mapping[str, str] | None = None
) -> Outcome:
    """Runs a program that must fail with these words (regular expressions) on standard error."""
    outcome = run(ranks, script(folder, source), limit_s=40, env=env)
    assert outcome.status not in (0, None), outcome
    for word in words:
        assert re.search(word, outcome.stderr), f"no '{word}' in\n{outcome}"
    return outcome


# ---- rank 0 alone calls a collective

ALONE = """
    import numpy as np
    import pycomm

    comm = pycomm.init()
    if comm.rank == 0:
        comm.all_reduce(np.ones(3), timeout=TIMEOUT)
"""


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ("", (r"Aborted: all_reduce\(f64 x 3", "world rank 1 has left: it ended or called shutdown")),
        ("    comm.barrier(timeout=20)", ("MismatchError", r"all_reduce\(f64 x 3", "barrier")),
        (
            "    import time; time.sleep(80)",
            (r"Timeout: all_reduce\(f64 x 3", "waiting for recv from rank 1"),
        ),
    ],
    ids=["and the other ends", "and both call the next", "and the other is busy"],
)
def test_rank_0_alone_calls_all_reduce(others: str, words: tuple[str, ...], tmp_path: Path) -> None:
    limit = "2" if "sleep" in others else "20"  # seconds: only the last one is to see it pass
    job(tmp_path, ALONE.replace("TIMEOUT", limit) + others, *words)


# ---- ranks numbered by hand

INIT = "import pycomm\npycomm.init()\n"


def test_rank_0_of_2_on_both_ranks_contradicts_mpi(tmp_path: Path) -> None:
    job(
        tmp_path,
        'import os\nos.environ.update(RANK="0", WORLD_SIZE="2")\n' + INIT,
        "InvalidArgument: the environment says RANK=0, but this process is rank 1 of 2",
        "unset RANK and WORLD_SIZE",
    )


@pytest.mark.parametrize(("rank", "said"), [("0", "WORLD_SIZE=2"), ("1", "RANK=1")])
def test_processes_that_mpi_did_not_start_are_told_apart(
    rank: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        pycomm.InvalidArgument, match=rf"says {said}, but this process is rank 0 of 1.*pycomm\.launch -n N"
    ):
        pycomm.init()
    assert not pycomm.is_initialized()


# ---- a transport for other tensors

NCCL = "transport 'nccl': it moves CUDA tensors only.* there is .*inproc, .*mpi"


@pytest.mark.skipif("nccl" in pycomm.info()["transports"], reason="this build has nccl")
def test_nccl_for_host_tensors_is_refused(tmp_path: Path) -> None:
    job(tmp_path, INIT, f"InvalidArgument: {NCCL}", env={"PYCOMM_TRANSPORTS": "nccl"})
    with pytest.raises(pycomm.InvalidArgument, match=NCCL):
        run_threads(2, lambda comm: comm.barrier(), transport="nccl")
    assert "CUDA" in pycomm.info()["missing"]["nccl"]
