"""Ranks on several hosts: real TCP between them, made of namespaces of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.hosts import CannotError, Network, hosts
from tests.helpers import Outcome, python_path, run, script

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

    def now(what):
        sys.stdout.write(f"{what} at {time.monotonic()}\\n")
        sys.stdout.flush()

    comm = pycomm.init()
    try:
        comm.barrier()  # others may still be in it when rank 3 dies
        if comm.rank == 3:
            now("killed")
            os.kill(os.getpid(), 9)
        comm.all_reduce(np.ones(1_000_000), algorithm="ring")
    except pycomm.PycommError:
        now("noticed")
    time.sleep(1)  # for the others, before mpirun ends them
"""


@pytest.mark.parametrize("options", [(), ("--with-ft", "ulfm")], ids=["plain", "ulfm"])
def test_the_death_of_a_rank_is_noticed_on_all_hosts(
    options: tuple[str, ...], two: Network, tmp_path: Path
) -> None:
    outcome = run(4, script(tmp_path, KILLED), network=two, options=options)
    (killed,) = times(outcome, "killed")
    assert outcome.ended_s - killed < SOON_S, outcome
    if options:  # MPI survives, and pycomm tells; otherwise mpirun ends all ranks
        assert len(times(outcome, "noticed")) == 3, outcome
    else:
        assert outcome.status not in (0, None), outcome


def times(outcome: Outcome, what: str) -> list[float]:
    return [float(seconds) for seconds in re.findall(rf"{what} at ([\d.]+)", outcome.stdout)]


MAKER = """
    import sys, time
    from bench.hosts import hosts

    with hosts(2) as network:
        print(*network.enter, flush=True)
        sys.stdin.read()
"""


def test_nothing_is_left_of_hosts_whose_maker_was_killed(two: Network, tmp_path: Path) -> None:
    """Beside others with the same names and addresses."""
    environment = {**os.environ, "PYTHONPATH": python_path()}
    pipe = subprocess.PIPE
    maker = subprocess.Popen(
        [sys.executable, script(tmp_path, MAKER)], stdin=pipe, stdout=pipe, text=True, env=environment
    )
    assert maker.stdout is not None and maker.stdin is not None
    enter = maker.stdout.readline().split()
    inside = [*enter, "ip", "-brief", "link"]
    links = subprocess.run(inside, capture_output=True, text=True, check=True).stdout
    assert {"h0", "h1"} <= {line.split("@")[0] for line in links.splitlines()}
    head = next(word.split("=")[1] for word in enter if word.startswith("--target="))
    maker.kill()
    maker.wait()
    until = time.monotonic() + SOON_S
    while Path(f"/proc/{head}/ns/net").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    maker.stdout.close()
    maker.stdin.close()
