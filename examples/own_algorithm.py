"""An all-reduce of your own: proven right for your number of ranks at its first use, then run as ours are.

    python -m pycomm.launch -n 4 examples/own_algorithm.py
    python -m pycomm.launch -n 2 -m bench collectives --plugin examples.own_algorithm --impl pycomm:exchange

Each rank sums one chunk of everybody's vector and gives the sum to everybody: two stages whatever the number
of ranks, and the least bytes, but messages with all others at once. What a step may be: pycomm/plans.py.
"""

from __future__ import annotations

import numpy as np

import pycomm
from pycomm.plans import Plan, copy, recv, recv_reduce, send


def exchange(rank: int, size: int) -> Plan:
    plan = Plan(chunks=size)
    others = [peer for peer in range(size) if peer != rank]
    if not others:
        return plan.stage(copy(0, "input", "output").final())
    theirs = [send(peer, peer, "input") for peer in others]
    mine = [recv_reduce(others[0], rank, "input", "output")]
    mine += [recv_reduce(peer, rank, "output", "output") for peer in others[1:]]
    plan.stage(*theirs, *mine[:-1], mine[-1].final())
    given = [send(peer, rank, "output").published() for peer in others]
    return plan.stage(*given, *(recv(peer, peer, "output") for peer in others))


pycomm.register_algorithm("exchange", exchange, "all_reduce")

if __name__ == "__main__":
    comm = pycomm.init()
    x = np.arange(1_000_003, dtype=np.float32) % 97 + comm.rank
    total = comm.all_reduce(x, algorithm="exchange")
    want = comm.size * (np.arange(1_000_003) % 97) + comm.size * (comm.size - 1) // 2
    assert np.array_equal(total, want)
    if comm.rank == 0:
        print(f"right on {comm.size} ranks:\n{exchange(0, comm.size)}", end="")
