"""Ranks on several nodes: who is where, and what follows it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import pycomm
from pycomm import Communicator, InvalidArgument
from pycomm.buckets import Buckets, Slot
from pycomm.plans import Plan, meet, recv, recv_reduce, reduce_from, send, store_to
from pycomm.testing import run_threads

pytestmark = pytest.mark.timeout(60)

LAYOUTS: list[list[int]] = [[0, 0, 1], [0, 1, 1, 0], [5, 5, 5, 3, 3], [0, 1, 2, 0, 1, 0, 0, 2]]


def nodes_of(comm: Communicator) -> list[list[int]]:
    return comm.nodes


def test_nodes_are_those_who_map_each_other() -> None:
    assert run_threads(3, nodes_of, transport="inproc") == [[[0], [1], [2]]] * 3
    assert run_threads(3, nodes_of, transport="inproc_mapped") == [[[0, 1, 2]]] * 3
    assert run_threads(1, nodes_of) == [[[0]]]


def test_nodes_are_numbered_by_their_lowest_ranks_and_the_same_on_all() -> None:
    assert run_threads(5, nodes_of, nodes=[7, 3, 7, 9, 3]) == [[[0, 2], [1, 4], [3]]] * 5


def test_groups_have_the_nodes_of_their_ranks() -> None:
    def body(comm: Communicator) -> Any:
        back = comm.split(0, key=-comm.rank)
        some = comm.split(0 if comm.rank in (1, 2, 5) else None)
        apart = comm.split(comm.rank % 2)
        assert back is not None and apart is not None
        return back.nodes, some.nodes if some else None, apart.nodes

    results = run_threads(6, body, nodes=[0, 1, 0, 1, 0, 1])
    assert results[0] == ([[0, 2, 4], [1, 3, 5]], None, [[0, 1, 2]])
    assert results[5] == ([[0, 2, 4], [1, 3, 5]], [[0, 2], [1]], [[0, 1, 2]])


@pytest.mark.parametrize(
    ("value", "words"),
    [("0,1", "names the nodes of 2 ranks; the job has 3"), ("0,one,1", "PYCOMM_NODES is 'one'")],
)
def test_nodes_of_other_ranks_are_refused(value: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYCOMM_NODES", value)
    with pytest.raises(InvalidArgument, match=words):
        run_threads(3, nodes_of)


@pytest.mark.parametrize("nodes", LAYOUTS, ids=str)
def test_calls_that_name_no_algorithm_are_right_whatever_memory_they_are_given(nodes: list[int]) -> None:
    def body(comm: Communicator) -> None:
        for count in (0, 1, comm.size + 1, 70_001):
            for make in (np.empty, comm.empty):
                x = make(count, np.float32)
                x[:] = np.arange(count) % 7 + comm.rank
                total = sum(np.arange(count) % 7 + rank for rank in range(comm.size))
                whole = comm.all_gather(x)
                assert (whole.reshape(comm.size, count).min(0) == np.arange(count) % 7).all()
                part = comm.reduce_scatter(x)
                assert (part == np.array_split(total, comm.size)[comm.rank]).all()
                at_root = comm.reduce(x, root=comm.size - 1, out=np.empty_like(x))
                assert comm.rank < comm.size - 1 or (at_root == total).all()
                comm.all_reduce(x, codec="fp16")
                assert (x == total).all()
                comm.broadcast(x, root=comm.size // 2)
                assert (x == total).all()

    run_threads(len(nodes), body, nodes=nodes)


@pytest.mark.parametrize("nodes", LAYOUTS, ids=str)
def test_groups_reduce_over_the_nodes_of_their_ranks(nodes: list[int]) -> None:
    def body(comm: Communicator) -> None:
        for color in (comm.rank % 2, min(comm.rank, 1), nodes[comm.rank]):
            group = comm.split(color, key=-comm.rank)
            assert group is not None
            for name in ("hierarchical", "hierarchical_direct"):
                x = np.full(1000, group.rank, np.int64)
                group.all_reduce(x, algorithm=name)
                assert (x == group.size * (group.size - 1) // 2).all()

    run_threads(len(nodes), body, nodes=nodes)


@pytest.mark.parametrize("progress", ["inline", "thread"])
def test_persistent_operations_and_buckets_run_over_nodes(progress: str) -> None:
    def body(comm: Communicator) -> None:
        x = comm.empty(5000)
        step = comm.all_reduce_init(x, "avg", algorithm="hierarchical")
        for turn in range(5):
            x[:] = comm.rank + turn
            assert (step() == 1.5 + turn).all()
        buckets = Buckets(comm, [Slot(4000), Slot(300)], codec="bf16")
        for turn in range(3):
            for i, count in enumerate((4000, 300)):
                buckets.put(i, np.full(count, comm.rank + turn, np.float32))
            buckets.flush()
            buckets.wait()
            assert all((buckets.view(i) == 6 + 4 * turn).all() for i in range(2))

    run_threads(4, body, nodes=[0, 1, 0, 1], progress=progress)


# ---- algorithms that users write


def sums_of_nodes(rank: int, size: int, nodes: list[list[int]]) -> Plan:
    """All ranks of a node add up its vector; the first ones of two nodes swap and share the sums."""
    mine, other = (nodes[0], nodes[1]) if rank in nodes[0] else (nodes[1], nodes[0])
    near = [peer for peer in mine if peer != rank]
    plan = Plan().stage(meet(near))
    if rank == mine[0]:
        plan.stage(reduce_from(mine, 0, "input", "output"))
        if rank == 0:
            plan.stage(recv_reduce(other[0], 0, "output", "output").final())
            plan.stage(send(other[0], 0, "output").published())
        else:
            plan.stage(send(other[0], 0, "output"))
            plan.stage(recv(other[0], 0, "output"))
        plan.stage(store_to(near, 0, "output", "output"))
    return plan.stage(meet(near))


def across_nodes(rank: int, size: int) -> Plan:
    peers = [peer for peer in range(size) if peer != rank]
    plan = Plan(chunks=size).stage(meet(peers))
    plan.stage(reduce_from(range(size), rank, "input", "output").final())
    return plan.stage(store_to(peers, rank, "output", "output")).stage(meet(peers))


pycomm.register_algorithm("sums_of_nodes", sums_of_nodes)
pycomm.register_algorithm("across_nodes", across_nodes)


def test_a_function_that_asks_for_nodes_is_given_them() -> None:
    def body(comm: Communicator) -> None:
        for codec in ("none", "fp16"):
            x = np.full(100_000, comm.rank + 1, np.float32)
            comm.all_reduce(x, algorithm="sums_of_nodes", codec=codec)
            assert (x == 15).all()

    run_threads(5, body, nodes=[0, 1, 0, 0, 1])


def test_a_plan_that_reaches_memory_of_another_node_is_refused() -> None:
    def body(comm: Communicator) -> None:
        x = np.ones(4)
        with pytest.raises(InvalidArgument, match="not addressable; these can: direct"):
            comm.all_reduce(x, algorithm="across_nodes")
        assert comm.all_reduce(x).tolist() == [4] * 4

    run_threads(4, body, nodes=[0, 0, 1, 1])


def test_plans_are_shown_for_nodes() -> None:
    command = [sys.executable, "-m", "pycomm.show", "all_reduce:hierarchical", "-n", "4", "--rank", "0"]
    flat = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    nodes = subprocess.run([*command, "--nodes", "0,0,1,1"], capture_output=True, text=True, check=True)
    assert "meet" not in flat
    assert "meet 1\n" in nodes.stdout and "reduce_from chunk 0 of input of 0, 1 into output" in nodes.stdout
    wrong = subprocess.run([*command, "--nodes", "0,1"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "nodes of 2 ranks of 4" in wrong.stderr
