"""Algorithms that users write, and the plans that are shown."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pycomm
from pycomm import Communicator, InvalidArgument, MismatchError, plans
from pycomm.plans import Plan, Step, copy, recv, recv_reduce, send
from pycomm.testing import run_threads
from tests.helpers import BETWEEN_THREADS, ROOT, run, script

_numbers = itertools.count()


def register(maker: Callable[..., Plan], collective: str = "all_reduce") -> str:
    """Under a name that no other test has."""
    name = f"own_{next(_numbers)}"
    pycomm.register_algorithm(name, maker, collective)
    return name


def shown_in_the_module() -> str:
    """The worked example of the docstring, indentation removed."""
    text = re.search(
        r"\n\n(    from pycomm\.plans.*?)    register_algorithm\(", plans.__doc__ or "", re.DOTALL
    )
    assert text
    return "\n".join(line[4:] for line in text.group(1).splitlines())


names: dict[str, Any] = {}
exec(shown_in_the_module(), names)
chain: Callable[[int, int], Plan] = names["chain"]
CHAIN = register(chain)


@pytest.mark.parametrize("transport", BETWEEN_THREADS)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_example_runs_as_ours_do(transport: str, size: int) -> None:
    def body(comm: Communicator) -> None:
        for count in (0, 1, 1000, 200_000):  # more than a segment
            x = np.arange(count, dtype=np.float32) % 7
            total = size * x
            out = np.empty_like(x)
            assert comm.all_reduce(x, out=out, algorithm=CHAIN) is out
            assert (out == total).all()
            comm.all_reduce_async(x, algorithm=CHAIN, scale=0.5, codec="fp16").wait()
            assert (x == total / 2).all()
        step = comm.all_reduce_init(np.ones(3), "max", algorithm=CHAIN)
        assert step().tolist() == [1, 1, 1]

    run_threads(size, body, transport=transport)


def test_the_example_runs_over_mpi_and_ranks_end_with_equal_bits(tmp_path: Any) -> None:
    program = script(
        tmp_path,
        "import hashlib\nimport numpy as np\nimport pycomm\n"
        + shown_in_the_module()
        + '\nregister_algorithm("chain", chain, "all_reduce")\n'
        + "comm = pycomm.init()\n"
        + "x = np.random.default_rng(comm.rank).random(50_000, np.float32)\n"
        + 'comm.all_reduce(x, algorithm="chain", codec="bf16")\n'
        + 'print("bits", hashlib.sha256(x).hexdigest())\n',
    )
    outcome = run(3, program)
    assert outcome.status == 0, outcome
    bits = re.findall(r"bits (\w+)", outcome.stdout)
    assert (len(bits), len(set(bits))) == (3, 1)


def star(rank: int, size: int, root: int) -> Plan:
    if rank != root:
        return Plan().stage(recv(root, 0, "output"))
    return Plan().stage(*(send(peer, 0, "output").published() for peer in range(size) if peer != root))


def test_a_collective_with_a_root_gives_it_to_the_function() -> None:
    name = register(star, "broadcast")

    def body(comm: Communicator) -> None:
        for root in range(3):
            x = np.full(5, comm.rank)
            comm.broadcast(x, root=root, algorithm=name)
            assert (x == root).all()

    run_threads(3, body)


def swapped(rank: int, size: int) -> Plan:
    """All_gather of two: each to the other."""
    return (
        Plan(chunks=size)
        .stage(copy(rank, "input", "output"))
        .stage(send(1 - rank, rank, "output").published(), recv(1 - rank, 1 - rank, "output"))
    )


def test_parts_of_chosen_sizes_are_served() -> None:
    name = register(swapped, "all_gather")

    def body(comm: Communicator) -> None:
        whole = comm.all_gather(np.full(2 * comm.rank, 3), counts=[0, 2], algorithm=name)
        assert whole.tolist() == [3, 3]

    run_threads(2, body)


# ---- plans that are wrong

WRONG: dict[str, Callable[[int, int], Plan]] = {
    "output unwritten": lambda rank, size: Plan(),
    r"adds the contribution of rank \d twice": lambda rank, size: (
        Plan()
        .stage(send(1 - rank, 0, "input"), recv_reduce(1 - rank, 0, "input", "scratch[0]"))
        .stage(send(1 - rank, 0, "scratch[0]"), recv_reduce(1 - rank, 0, "input", "output").final())
    ),
    "there are 1 chunks": lambda rank, size: Plan().stage(copy(3, "input", "output").final()),
    "peer 7 of 2 ranks": lambda rank, size: Plan().stage(send(7, 0, "input")),
    "plan text, line 3: expected": lambda rank, size: Plan().stage(Step("hope for the best")),
    "plan text, line 3: expected input, output or .* got 'putput": lambda rank, size: Plan().stage(
        copy(0, "putput", "output")
    ),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_plan_is_refused_before_a_byte_moves(words: str) -> None:
    name = register(WRONG[words])

    def body(comm: Communicator) -> None:
        x = np.ones(3)
        with pytest.raises(InvalidArgument, match=words):
            comm.all_reduce(x, algorithm=name)
        assert comm.all_reduce(x).tolist() == [2, 2, 2]

    run_threads(2, body)


def unpublished(rank: int, size: int) -> Plan:
    """Right but for lossy codecs: the sender keeps what it did not round."""
    if rank == 0:
        return Plan().stage(recv_reduce(1, 0, "input", "output").final()).stage(send(1, 0, "output"))
    return Plan().stage(send(0, 0, "input")).stage(recv(0, 0, "output"))


def test_a_plan_that_keeps_no_equal_bits_serves_no_lossy_codec() -> None:
    name = register(unpublished)

    def body(comm: Communicator) -> None:
        assert comm.all_reduce(np.ones(3, np.float32), algorithm=name).tolist() == [2, 2, 2]
        with pytest.raises(InvalidArgument, match=r"codec fp16.*; these can: .*ring"):
            comm.all_reduce(np.ones(3, np.float32), algorithm=name, codec="fp16")

    run_threads(2, body, transport="inproc")


def test_ranks_whose_plans_differ_are_named() -> None:
    here: dict[int, str] = {}

    def forked(rank: int, size: int) -> Plan:
        flavour = here.setdefault(threading.get_ident(), str(len(here)))  # another one on each thread
        plan = chain(rank, size)
        return plan if flavour == "0" else plan.stage()

    name = register(forked)

    def body(comm: Communicator) -> None:
        with pytest.raises(
            MismatchError, match=r"plans of all_reduce:own_\d+ on rank .* differ from rank 0's"
        ):
            comm.all_reduce(np.ones(3), algorithm=name)

    run_threads(3, body)


def test_names_that_are_taken_or_none_are_refused() -> None:
    for arguments, words in [
        (("ring", chain), "there is an algorithm 'ring' for all_reduce already"),
        ((CHAIN, chain), "already"),
        (("a b", chain), "name is 'a b'; expected letters"),
        (("new", chain, "barrier"), "no collective 'barrier'; there is all_reduce"),
    ]:
        with pytest.raises(InvalidArgument, match=words):
            pycomm.register_algorithm(*arguments)
    with pytest.raises(InvalidArgument, match="no algorithm 'new'"):
        run_threads(2, lambda comm: comm.all_reduce(np.ones(1), algorithm="new"))


# ---- showing ours


def show(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pycomm.show", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)


def test_plans_are_shown_for_each_rank() -> None:
    shown = show("all_reduce:ring", "-n", "2")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("rank 0\nchunks 2\nstage 0\n  send chunk 1 of input to 1\n")
    assert shown.stdout.count("rank ") == 2
    alone = show("broadcast:binomial", "-n", "4", "--rank", "3", "--root", "3").stdout
    assert alone.count("send chunk 0 of output") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["all_reduce:rings", "-n", "2"], "no algorithm 'rings' for all_reduce; there are: direct"),
        (["all_reduces", "-n", "2"], "unknown collective 'all_reduces'"),
        (["all_reduce:ring", "-n", "2", "--rank", "2"], "rank 2 and root 0 of 2 ranks"),
    ],
)
def test_what_cannot_be_shown_is_said(arguments: list[str], words: str) -> None:
    shown = show(*arguments)
    assert shown.returncode == 2
    assert words in shown.stderr
