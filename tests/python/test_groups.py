"""split(), communicators of communicators, and messages between two ranks."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import pycomm
from pycomm import Communicator
from pycomm.testing import run_threads

pytestmark = pytest.mark.timeout(60)


def total(comm: Communicator, value: float) -> float:
    return float(comm.all_reduce(np.full(5, value))[0])


def test_split_groups_by_color_in_order_of_key_then_rank() -> None:
    def rank(comm: Communicator) -> Any:
        group = comm.split(comm.rank % 2, key=-comm.rank)
        assert group is not None
        return (
            group.rank,
            group.size,
            group.all_gather(np.array([comm.rank])).tolist(),
            total(group, comm.rank),
        )

    assert run_threads(5, rank) == [
        (2, 3, [4, 2, 0], 6.0),
        (1, 2, [3, 1], 4.0),
        (1, 3, [4, 2, 0], 6.0),
        (0, 2, [3, 1], 4.0),
        (0, 3, [4, 2, 0], 6.0),
    ]


def test_ranks_without_color_join_none_and_go_on() -> None:
    def rank(comm: Communicator) -> Any:
        group = comm.split(None if comm.rank == 1 else 7)
        if comm.rank == 1:
            assert group is None
        else:
            assert group is not None and total(group, comm.rank + 1) == 4.0
        return total(comm, 1)

    assert run_threads(3, rank) == [3.0] * 3


def test_nobody_has_a_color() -> None:
    assert run_threads(2, lambda comm: comm.split(None)) == [None, None]


def test_splits_of_splits_and_equal_splits_do_not_meet() -> None:
    def rank(comm: Communicator) -> None:
        halves = comm.split(comm.rank // 2)
        assert halves is not None
        twin = halves.split(0)
        mixed = comm.split(comm.rank % 2)
        pair = mixed.split(0, key=-mixed.rank) if mixed else None
        assert twin is not None and mixed is not None and pair is not None
        contexts = {c._core.context for c in (comm, halves, twin, mixed, pair)}
        assert len(contexts) == 5
        works = [
            (c, c.all_reduce_async(np.full(2000, float(comm.rank))))
            for c in (pair, mixed, twin, halves, comm)
        ]
        sums = {id(c): float(work.wait()[0]) for c, work in works}
        assert sums[id(comm)] == 6
        assert sums[id(halves)] == sums[id(twin)] == (1 if comm.rank < 2 else 5)
        assert sums[id(mixed)] == sums[id(pair)] == (2 if comm.rank % 2 == 0 else 4)
        assert pair.rank == 1 - mixed.rank

    run_threads(4, rank)


def test_a_group_of_one_does_everything_alone() -> None:
    def rank(comm: Communicator) -> None:
        alone = comm.split(comm.rank)
        assert alone is not None and alone.size == 1 and alone.transport == "none"
        assert total(alone, 3) == 3
        assert alone.all_reduce(np.ones(2, np.float32), op="avg", scale=0.5).tolist() == [0.5, 0.5]
        alone.barrier()

    run_threads(3, rank)


def test_a_broken_group_leaves_its_parent_and_siblings() -> None:
    def rank(comm: Communicator) -> float:
        group = comm.split(comm.rank // 2)
        assert group is not None
        if comm.rank < 2:
            group.abort("on purpose")
            with pytest.raises(pycomm.Aborted, match="on purpose"):
                group.barrier()
        else:
            assert total(group, 1) == 2
        return total(comm, 1)

    assert run_threads(4, rank) == [4.0] * 4


def test_split_in_two_threads_at_once_is_refused_not_confused() -> None:
    def rank(comm: Communicator) -> None:
        a, b = comm.split(0), comm.split(0)
        assert a is not None and b is not None
        if comm.rank == 1:
            entered.wait(10)
            a.split(0)
            return
        outcome: list[Any] = []
        thread = threading.Thread(target=lambda: outcome.append(a.split(0)))
        thread.start()
        while not comm._world.splitting.locked():
            pass
        with pytest.raises(pycomm.InvalidArgument, match="making a group"):
            b.split(0)
        entered.set()
        thread.join(20)
        assert outcome[0].size == 2

    entered = threading.Event()
    run_threads(2, rank)


def test_many_splits() -> None:
    def rank(comm: Communicator) -> float:
        groups = [comm.split(0, key=(i * comm.rank) % 3) for i in range(40)]
        return sum(total(group, 1) for group in groups if group is not None)

    assert run_threads(3, rank) == [120.0] * 3


# ---- messages between two ranks


def test_messages_of_a_pair_keep_their_order_whatever_their_size() -> None:
    counts = [1, 100_000, 0, 17, 70_000, 3, 1, 200_000, 2]

    def rank(comm: Communicator) -> None:
        if comm.rank == 0:
            works = [comm.send_async(np.full(count, i, np.int32), 1) for i, count in enumerate(counts)]
            for work in reversed(works):
                work.wait()
        else:
            for i, count in enumerate(counts):
                assert (comm.recv(np.empty(count, np.int32), 0) == i).all()

    run_threads(2, rank)


def test_receives_posted_first_match_in_order() -> None:
    def rank(comm: Communicator) -> None:
        other = 1 - comm.rank
        incoming = [np.empty(50) for _ in range(30)]
        receives = [comm.recv_async(x, other) for x in incoming]
        sends = [comm.send_async(np.full(50, 10.0 * i + comm.rank), other) for i in range(30)]
        for work in (*receives, *sends):
            work.wait()
        assert all((x == 10 * i + other).all() for i, x in enumerate(incoming))

    run_threads(2, rank)


def test_messages_and_collectives_do_not_mix() -> None:
    def rank(comm: Communicator) -> None:
        to, source = (comm.rank + 1) % 3, (comm.rank - 1) % 3
        incoming = np.empty(9000)
        receive = comm.recv_async(incoming, source)
        assert total(comm, 1) == 3
        send = comm.send_async(np.full(9000, float(comm.rank)), to)
        comm.barrier()
        send.wait()
        assert (receive.wait() == source).all()

    run_threads(3, rank)


def test_messages_between_other_pairs_of_a_group() -> None:
    def rank(comm: Communicator) -> None:
        group = comm.split(0, key=-comm.rank)
        assert group is not None
        for peer in range(group.size):
            if peer == group.rank:
                continue
            incoming = np.empty(3, np.int64)
            receive = group.recv_async(incoming, peer)
            group.send(np.full(3, group.rank, np.int64), peer)
            assert (receive.wait() == peer).all()

    run_threads(4, rank)


def test_a_lost_message_times_out_naming_the_peer() -> None:
    def rank(comm: Communicator) -> None:
        if comm.rank == 0:
            with pytest.raises(pycomm.Timeout, match=r"recv\(f64 x 3\).*recv from rank 1"):
                comm.recv(np.empty(3), 1, timeout=0.2)
        else:
            with pytest.raises(pycomm.Timeout, match="rank 0"):
                comm.barrier()

    run_threads(2, rank)
