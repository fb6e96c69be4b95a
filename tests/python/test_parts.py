"""Collectives whose ranks give or get parts: shapes of results, chosen sizes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pycomm import Communicator, InvalidArgument, MismatchError
from pycomm.testing import run_threads
from tests.helpers import BETWEEN_THREADS


def ranks(size: int, body: Callable[[Communicator], Any]) -> None:
    for transport in BETWEEN_THREADS:
        run_threads(size, body, transport=transport)


# ---- what comes back


def test_gather_stacks_on_the_root_alone() -> None:
    def body(comm: Communicator) -> None:
        mine = np.full((2, 3), comm.rank, np.int32)
        whole = comm.gather(mine, root=1)
        if comm.rank == 1:
            assert whole is not None
            assert whole.shape == (6, 3)
            assert whole[::2, 0].tolist() == [0, 1, 2]
        else:
            assert whole is None
        assert (mine == comm.rank).all()

    ranks(3, body)


def test_scatter_cuts_the_roots_array() -> None:
    def body(comm: Communicator) -> None:
        x = torch.arange(6.0) if comm.rank == 2 else None
        out = None if comm.rank == 2 else torch.empty(2)
        part = comm.scatter(x, root=2, out=out)
        assert part.tolist() == [2 * comm.rank, 2 * comm.rank + 1]

    ranks(3, body)


def test_reduce_leaves_other_ranks_alone() -> None:
    def body(comm: Communicator) -> None:
        x = np.full(1000, comm.rank + 1.0)
        result = comm.reduce(x, root=1, out=np.empty(1000))  # out of other ranks is not looked at
        assert (x == comm.rank + 1).all()
        assert (result is not None) == (comm.rank == 1)
        assert result is None or (result == 6).all()
        assert comm.reduce(x, root=0) is (x if comm.rank == 0 else None)
        assert (x == (6 if comm.rank == 0 else comm.rank + 1)).all()

    ranks(3, body)


def test_all_to_all_transposes_blocks() -> None:
    def body(comm: Communicator) -> None:
        x = np.arange(6).reshape(3, 2) + 10 * comm.rank
        out = comm.all_to_all(x)
        assert out.shape == (3, 2)
        assert out.tolist() == [
            [10 * peer + 2 * comm.rank, 10 * peer + 2 * comm.rank + 1] for peer in range(3)
        ]
        # Seven elements: parts of 3, 2 and 2, as numpy.array_split cuts.
        part = np.array_split(np.arange(7), 3)[comm.rank]
        assert comm.all_to_all(np.arange(7)).tolist() == part.tolist() * 3

    ranks(3, body)


def test_all_to_all_tells_sizes_that_are_not_given() -> None:
    def body(comm: Communicator) -> None:
        counts = [(comm.rank + peer) % 3 for peer in range(3)]  # some are 0
        x = np.concatenate([np.full(n, 10 * comm.rank + peer) for peer, n in enumerate(counts)])
        out = comm.all_to_all(x, counts=counts)
        assert out.tolist() == [10 * p + comm.rank for p in range(3) for _ in range((comm.rank + p) % 3)]

    ranks(3, body)


def test_chosen_parts_make_arrays_of_the_right_length() -> None:
    counts = [0, 5, 2]

    def body(comm: Communicator) -> None:
        mine = np.full(counts[comm.rank], comm.rank, np.float32)
        whole = comm.all_gather(mine, counts=counts)
        assert whole.tolist() == [1.0] * 5 + [2.0] * 2
        summed = comm.reduce_scatter(np.arange(7.0), counts=np.array(counts))
        assert summed.tolist() == (3 * np.split(np.arange(7.0), [0, 5])[comm.rank]).tolist()
        gathered = comm.gather(mine, root=0, counts=counts)
        assert gathered is None or gathered.tolist() == whole.tolist()
        part = comm.scatter(
            whole if comm.rank == 0 else None, counts=counts, out=np.empty(counts[comm.rank], np.float32)
        )
        assert part.tolist() == mine.tolist()

    ranks(3, body)


def test_async_forms_return_the_same() -> None:
    def body(comm: Communicator) -> None:
        x = np.full(8, comm.rank + 1)
        works: list[Any] = [
            comm.gather_async(x, root=1),
            comm.scatter_async(x if comm.rank == 0 else None, out=np.empty(4, x.dtype)),
            comm.all_to_all_async(x),
            comm.reduce_async(x.copy(), root=1),
        ]
        gathered, scattered, exchanged, reduced = [work.wait() for work in works]
        assert (gathered is None) == (reduced is None) == (comm.rank == 0)
        if comm.rank == 1:
            assert gathered.tolist() == [1] * 8 + [2] * 8
            assert reduced.tolist() == [3] * 8
        assert scattered.tolist() == [1] * 4
        assert exchanged.tolist() == [1] * 4 + [2] * 4

    ranks(2, body)


# ---- what is refused, before anything moves

REFUSED: dict[str, tuple[Callable[[Communicator], Any], str]] = {
    "sizes for one rank too many": (
        lambda c: c.all_gather(np.ones(1), counts=[1, 1, 1]),
        r"counts is \[1, 1, 1\]; expected 2 whole numbers, 0 or more, one for each rank",
    ),
    "no sizes": (lambda c: c.reduce_scatter(np.ones(1), counts=[]), r"counts is \[\]; expected 2 whole"),
    "half an element": (lambda c: c.gather(np.ones(1), counts=[0.5, 1]), "expected 2 whole numbers"),
    "a number for sizes": (lambda c: c.gather(np.ones(1), counts=2), "counts is 2; expected 2 whole"),
    "a negative size": (
        lambda c: c.all_gather(np.ones(1), counts=[2, -1]),
        r"counts is \[2, -1\]; expected 2 whole numbers, 0 or more",
    ),
    "sizes whose sum has more than 64 bits": (
        lambda c: c.reduce_scatter(np.ones(2), out=np.ones(2), counts=[2**60, 2**60]),
        r"counts\[1\] is 1152921504606846976; expected elements, 0 or more, at most .* in all",
    ),
    "another size from itself than to itself": (
        lambda c: (
            c.all_to_all(
                np.ones(8), out=np.ones(1), counts=[8, 0], received=[0, 1] if c.rank == 0 else [1, 0]
            )
            if c.rank == 0
            else c.all_to_all(np.ones(8), out=np.ones(1), counts=[0, 8], received=[1, 0])
        ),
        r"counts\[(.)\] is 8 and received\[\1\] is 0; rank \1 gets from itself what it gives",
    ),
    "an input of another size": (
        lambda c: c.all_gather(np.ones(7), counts=[1, 2]),
        "the input has 7 elements; expected [12] on rank . of 2",
    ),
    "a root's out of another size": (
        lambda c: [c.gather(np.ones(2), root=r, out=np.ones(5)) for r in (c.rank,)],
        "gather: out has 5 elements; expected 4",
    ),
    "what does not divide": (
        lambda c: c.scatter(np.ones(3), root=c.rank),
        "x has 3 elements, not a multiple of 2 ranks: pass counts",
    ),
    "nothing to receive into": (
        lambda c: c.scatter(None, root=1 - c.rank),
        "scatter: x and out are None; rank . expected an array to receive into",
    ),
    "nothing to give": (
        lambda c: c.scatter(None, root=c.rank, out=np.ones(1)),
        "x is None; expected an array",
    ),
    "nothing to gather": (lambda c: c.gather(None, root=1 - c.rank), "gather: x is None"),
    "an exchange in place": (
        lambda c: in_place(c),
        "all_to_all: input and out overlap; they must be separate",
    ),
    "an exchange of unknown sizes": (
        lambda c: c.all_to_all_async(np.ones(2), counts=[1, 1]),
        "counts is given without received",
    ),
    "what is received without what is given": (
        lambda c: c.all_to_all(np.ones(2), received=[1, 1]),
        "received is given without counts",
    ),
    "a codec where nothing is reduced": (
        lambda c: c._core.run(
            ("gather", np.ones(2), None, "sum", 1 - c.rank, 1.0, "fp16", "", 0.0, None, None, "any")
        ),
        "codec fp16 .* in gather",
    ),
    "an order where nothing is reduced": (
        lambda c: c._core.run(
            ("gather", np.ones(2), None, "sum", 1 - c.rank, 1.0, "", "", 0.0, None, None, "rank")
        ),
        "order rank in gather, which adds nothing",
    ),
    "an algorithm that needs equal parts": (
        lambda c: c.all_to_all(np.ones(2), counts=[1, 1], received=[1, 1], algorithm="bruck"),
        "bruck cannot be done on 2 ranks .*: not for parts of chosen sizes; these can: direct",
    ),
    "a root that is none": (lambda c: c.reduce(np.ones(2), root=2), "root is 2; expected a rank from 0 to 1"),
    "a scatter's root that is none": (lambda c: c.scatter(np.ones(2), root=5), "root is 5; expected a rank"),
}


def in_place(comm: Communicator) -> None:
    x = np.ones(4)
    comm.all_to_all(x, out=x)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_reason_and_nothing_moves(name: str) -> None:
    call, words = REFUSED[name]

    def body(comm: Communicator) -> None:
        with pytest.raises(InvalidArgument, match=words):
            call(comm)
        assert comm.all_reduce(np.array([1])).item() == 2

    run_threads(2, body, transport="inproc")


# ---- ranks that do not agree


@pytest.mark.parametrize("transport", BETWEEN_THREADS)
def test_sizes_that_differ_are_a_mismatch_that_names_both(transport: str) -> None:
    def body(comm: Communicator) -> None:
        counts = [3, 1] if comm.rank == 0 else [2, 2]
        with pytest.raises(MismatchError, match="in parts of chosen sizes"):
            comm.all_gather(np.ones(counts[comm.rank]), out=np.ones(4), counts=counts)

    run_threads(2, body, transport=transport)


def test_an_exchange_that_expects_another_size_is_a_mismatch() -> None:
    """Found in the header, before a message longer than its receive is on its way."""

    def body(comm: Communicator) -> None:
        give = [0, 70_000] if comm.rank == 0 else [70_000, 0]
        get = [0, 50_000] if comm.rank == 0 else [70_000, 0]
        with pytest.raises(MismatchError, match=r"x 70000 between.*x 50000 between|x 50000.*x 70000"):
            comm.all_to_all(np.ones(70_000), counts=give, received=get)

    run_threads(2, body, transport="inproc")


def test_different_roots_of_a_reduce_are_a_mismatch() -> None:
    def body(comm: Communicator) -> None:
        with pytest.raises(MismatchError, match="root"):
            # By a tree two roots would wait for each other, unheard, until the deadline.
            comm.reduce(np.ones(5000), root=comm.rank, algorithm="ring", timeout=20)
            comm.barrier()

    run_threads(2, body, transport="inproc")


def test_ranks_that_choose_other_algorithms_for_other_sizes_see_both_calls() -> None:
    """With 18 ranks a short all_gather goes by bruck and a long one by ring."""

    def body(comm: Communicator) -> None:
        x = np.ones(8 if comm.rank == 0 else 80_000)
        with pytest.raises(MismatchError, match=r"bruck.*direct|direct.*bruck"):
            comm.all_gather(x, out=np.ones(18 * len(x)), timeout=30)

    run_threads(18, body, transport="inproc")


def test_a_rank_that_is_told_of_a_failure_says_what_it_was_doing_itself() -> None:
    def body(comm: Communicator) -> None:
        if comm.rank == 0:
            with pytest.raises(MismatchError):
                comm.all_reduce(np.ones(3), algorithm="ring")
        elif comm.rank == 1:
            with pytest.raises(MismatchError):
                comm.all_reduce(np.ones(4), algorithm="ring")
        else:
            with pytest.raises(MismatchError, match=r"f64 x 5, op max"):
                comm.all_reduce(np.ones(5), "max", algorithm="ring")

    run_threads(3, body, transport="inproc")
