"""Sums in a given order: what they must not depend on, who refuses, and what a mismatch says.

That every algorithm adds in the orders that it claims, to the bit, is in tests/conformance.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import pycomm
from pycomm import Buckets, Communicator, InvalidArgument, MismatchError, Slot
from pycomm.plans import Plan, copy, recv, recv_reduce, reduce, send
from pycomm.testing import run_threads
from tests.helpers import BETWEEN_THREADS

pytestmark = pytest.mark.timeout(60)

COUNT = 5003
ORDERS = ("rank", "tree")


def values(size: int, dtype: Any = np.float32) -> Any:
    """Rows of numbers whose sum depends on the order."""
    return np.random.default_rng(7).standard_normal((size, COUNT)).astype(dtype)


def tree_sum(rows: Any) -> Any:
    if len(rows) == 1:
        return rows[0]
    half = len(rows) // 2
    return tree_sum(rows[:half]) + tree_sum(rows[half:])


def test_the_values_of_this_file_tell_orders_apart() -> None:
    rows = values(4)
    assert (functools.reduce(np.add, rows) != tree_sum(rows)).sum() > COUNT // 10


# ---- what the result does not depend on


@pytest.mark.parametrize("transport", BETWEEN_THREADS)
@pytest.mark.parametrize("codec", ["none", "fp16"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_vector_in_one_call_has_the_bits_of_its_pieces(order: str, codec: str, transport: str) -> None:
    def body(comm: Communicator) -> None:
        mine = values(4)[comm.rank]
        options: dict[str, Any] = {"order": order, "codec": codec, "scale": 0.3}
        whole = comm.all_reduce(mine.copy(), **options)
        for cuts in ([1, 2, 7, 8], list(range(500, COUNT, 500)), [COUNT - 3]):
            pieces = np.split(mine.copy(), cuts)
            for piece in pieces:
                comm.all_reduce(piece, **options)
            assert np.concatenate(pieces).tobytes() == whole.tobytes()
        fused = np.array_split(mine.copy(), 40)
        with comm.grouped() as group:
            for piece in fused:
                group.all_reduce(piece, **options)
        assert np.concatenate(fused).tobytes() == whole.tobytes()
        works = [comm.all_reduce_async(piece, **options) for piece in np.split(mine.copy(), [100, 4000])]
        assert np.concatenate([work.wait() for work in works]).tobytes() == whole.tobytes()
        assert comm.all_reduce_init(mine.copy(), **options)().tobytes() == whole.tobytes()

    run_threads(4, body, transport=transport)


@pytest.mark.parametrize("codec", ["none", "bf16"])
@pytest.mark.parametrize("order", ORDERS)
def test_the_collectives_that_reduce_agree(order: str, codec: str) -> None:
    def body(comm: Communicator) -> None:
        mine = values(4)[comm.rank]
        options: dict[str, Any] = {"op": "avg", "order": order, "codec": codec}
        whole = comm.all_reduce(mine.copy(), **options)
        part = np.array_split(whole, comm.size)[comm.rank]
        assert comm.reduce_scatter(mine, **options).tobytes() == part.tobytes()
        counts = [0, 5000, 1, 2]
        chosen = np.split(whole, [0, 5000, 5001])[comm.rank]
        assert comm.reduce_scatter(mine, counts=counts, **options).tobytes() == chosen.tobytes()
        for algorithm in ("direct", "scatter_gather"):
            at_root = comm.reduce(mine.copy(), root=2, algorithm=algorithm, **options)
            assert at_root is None or at_root.tobytes() == whole.tobytes()

    run_threads(4, body)


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_do_not_depend_on_how_buckets_are_cut(order: str) -> None:
    lengths = [1000, 1, 2500, 0, 1502]

    def body(comm: Communicator) -> None:
        mine = np.split(values(4)[comm.rank], np.cumsum(lengths)[:-1])
        total = {"rank": lambda rows: functools.reduce(np.add, rows), "tree": tree_sum}[order](values(4))
        for bucket_bytes in (1, 5000, 1 << 20):
            for listed in (range(5), reversed(range(5))):
                slots = list(listed)
                buckets = Buckets(comm, [Slot(lengths[i]) for i in slots], bucket_bytes, order=order)
                for slot, i in enumerate(slots):
                    buckets.put(slot, mine[i])
                buckets.flush()
                buckets.wait()
                got = {i: buckets.view(slot).copy() for slot, i in enumerate(slots)}
                assert np.concatenate([got[i] for i in range(5)]).tobytes() == total.tobytes()

    run_threads(4, body)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_tree_of_shards_has_the_same_bits_on_1_2_4_and_8_ranks(dtype: Any) -> None:
    shards = values(8, dtype)
    want = tree_sum(shards) * dtype(0.1)

    def body(comm: Communicator) -> None:
        mine = np.split(shards, comm.size)[comm.rank]
        for algorithm in (None, "direct", "recursive_doubling", "halving_doubling"):
            x = comm.all_reduce(tree_sum(mine).copy(), order="tree", scale=0.1, algorithm=algorithm)
            assert x.tobytes() == want.tobytes()

    for size in (1, 2, 4, 8):
        run_threads(size, body)


def test_a_sum_of_16_bit_numbers_is_rounded_once() -> None:
    """In steps 2048 + 1 + 1 + ... stays at 2048, or is rounded up too far."""

    def body(comm: Communicator) -> None:
        x = np.full(3, 2048 if comm.rank == 0 else 1, np.float16)
        for order in ORDERS:
            assert comm.all_reduce(x.copy(), order=order).tolist() == [2056, 2056, 2056]

    run_threads(8, body)


def test_a_scaled_sum_of_16_bit_numbers_does_not_overflow_on_its_way() -> None:
    def body(comm: Communicator) -> None:
        x = np.full(3, 60000, np.float16)
        assert comm.all_reduce(x, "avg", order="rank").tolist() == [60000] * 3
        y = np.full(3, 60000, np.float32)
        assert comm.all_reduce(y, "avg", codec="fp16", order="tree").tolist() == [60000] * 3

    run_threads(4, body)


# ---- who refuses


@pytest.mark.parametrize(
    ("size", "dtype", "options", "words"),
    [
        (
            3,
            "float32",
            {"order": "tree"},
            "order tree on 3 ranks: expected a power of two",
        ),
        (2, "float32", {"order": "random"}, "order is 'random'; expected any, rank or tree"),
        (
            4,
            "float32",
            {"order": "rank", "algorithm": "ring"},
            "in order rank: .*; these can: direct, mapped$",
        ),
        (
            4,
            "float32",
            {"order": "tree", "algorithm": "ring"},
            "in order tree: .*; these can: direct, halving_doubling, mapped, recursive_doubling$",
        ),
        (
            4,
            "float16",
            {"order": "tree", "algorithm": "halving_doubling"},
            "on f16 in order tree: .*; these can: direct, mapped$",
        ),
        (
            4,
            "float32",
            {"order": "tree", "algorithm": "halving_doubling", "codec": "fp16"},
            "codec fp16 on f32 in order tree: .*; these can: direct$",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused_with_what_can(
    size: int, dtype: str, options: dict[str, Any], words: str
) -> None:
    def body(comm: Communicator) -> None:
        x = np.ones(3, dtype)
        for call in (comm.all_reduce, comm.all_reduce_async, comm.all_reduce_init):
            with pytest.raises(InvalidArgument, match=words):
                call(x, **options)
        with pytest.raises(InvalidArgument, match=words):
            Buckets(comm, [Slot(3, dtype)], **options)
        assert comm.all_reduce(x).tolist() == [size] * 3

    run_threads(size, body)


def test_ranks_that_ask_for_different_orders_are_told_both() -> None:
    def body(comm: Communicator) -> None:
        with pytest.raises(MismatchError) as caught:
            comm.all_reduce(np.ones(3), order="rank" if comm.rank else "any", algorithm="direct")
        assert "order rank" in str(caught.value) and "order any" in str(caught.value)

    run_threads(2, body)


# ---- plans that the caller wrote


def chain(rank: int, size: int) -> Plan:
    """Partial sums from rank 0 upwards, the result down again."""
    plan, first, last = Plan(), rank == 0, rank == size - 1
    if not first:
        plan.stage(recv_reduce(rank - 1, 0, "input", "output").final(last))
    if not last:
        plan.stage(send(rank + 1, 0, "input" if first else "output")).stage(recv(rank + 1, 0, "output"))
    if not first:
        plan.stage(send(rank - 1, 0, "output").published(last))
    return plan


def at_rank_0(rank: int, size: int) -> Plan:
    """Of four: the contributions to rank 0, which adds them in halves."""
    if rank != 0:
        return Plan().stage(send(0, 0, "input")).stage(recv(0, 0, "output"))
    plan = Plan().stage(
        copy(0, "input", "scratch[0]"), *(recv(r, 0, f"scratch[{r}]") for r in range(1, size))
    )
    plan.stage(reduce(0, [f"scratch[{r}]" for r in range(size)], "output").pairwise().final())
    return plan.stage(*(send(r, 0, "output").published() for r in range(1, size)))


pycomm.register_algorithm("order_chain", chain)
pycomm.register_algorithm("order_at_rank_0", at_rank_0)


def test_plans_of_the_callers_run_in_the_orders_that_they_are_proven_to_keep() -> None:
    def body(comm: Communicator) -> None:
        for dtype in (np.float32, np.float16):
            mine = values(4, dtype)[comm.rank]
            for codec in ("none", "fp16") if dtype == np.float32 else ("none",):
                want = comm.all_reduce(mine.copy(), order="tree", codec=codec)
                got = comm.all_reduce(mine.copy(), order="tree", codec=codec, algorithm="order_at_rank_0")
                assert got.tobytes() == want.tobytes()
        mine = values(4)[comm.rank]
        want = functools.reduce(np.add, values(4))
        assert (comm.all_reduce(mine.copy(), order="rank", algorithm="order_chain") == want).all()

    run_threads(4, body)


@pytest.mark.parametrize(
    ("name", "order", "dtype", "why"),
    [
        ("order_chain", "tree", "float32", "rank 3, stage 0, .* a sum in another order than 'tree'; "),
        ("order_at_rank_0", "rank", "float32", "rank 0, stage 1, .* a sum in another order than 'rank'; "),
        ("order_chain", "rank", "float16", "on f16 in order rank.*; "),  # rounds at every hop
    ],
)
def test_plans_of_the_callers_are_refused_where_they_add_otherwise(
    name: str, order: str, dtype: str, why: str
) -> None:
    def body(comm: Communicator) -> None:
        with pytest.raises(InvalidArgument, match=f"all_reduce by {name} .*{why}these can: direct"):
            comm.all_reduce(np.ones(3, dtype), order=order, algorithm=name)

    run_threads(4, body)
