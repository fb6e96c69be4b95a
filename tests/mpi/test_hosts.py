"""Ranks on several hosts: real TCP between them, made of namespaces of this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.hosts import CannotError, Network, hosts
from tests.helpers import run, script

pytestmark = pytest.mark.timeout(90)

SOON_S = 5.0


@pytest.fixture(scope="module")
def two() -> Iterator[Network]:
    with ExitStack() as held:
        try:
            network = held.enter_context(hosts(2, rate="10gbit"))
        except CannotError as lack:
            pytest.skip(str(lack))
        yield network


def test_two_hosts_of_two_ranks(two: Network) -> None:
    outcome = run(4, Path(__file__).with_name("hosts_main.py"), network=two)
    assert outcome.status == 0, outcome
    assert outcome.stdout.splitlines()[-1] == "training_is_that_of_one_process", outcome


KILLED = """
    import os, sys, time
    import numpy as np
    import pycomm

    comm = pycomm.init()
    comm.barrier()
    if comm.rank == 3:
        sys.stdout.write(f"killed at {time.monotonic()}\\n")
        sys.stdout.flush()
        os.kill(os.getpid(), 9)
    comm.all_reduce(np.ones(1_000_000), algorithm="ring")
"""


def test_a_rank_that_is_killed_on_another_host_ends_the_job(two: Network, tmp_path: Path) -> None:
    outcome = run(4, script(tmp_path, KILLED), network=two)
    killed = re.search(r"killed at ([\d.]+)", outcome.stdout)
    assert outcome.status not in (0, None) and killed, outcome
    assert outcome.ended_s - float(killed[1]) < SOON_S, outcome


def test_files_and_names_of_a_host_end_with_it(two: Network) -> None:
    """A second network meets nothing of the first: it has the same names and addresses."""
    with hosts(2) as other:
        assert (other.names, other.enter != two.enter) == (two.names, True)
