"""The exchange that precedes a group, over a store of torch's."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

pytest.importorskip("torch")

import torch.distributed as dist

from pycomm.errors import Timeout
from pycomm.torch.store import StoreExchange


def exchanged(store: dist.Store, members: list[int]) -> list[list[bytes]]:
    """What each member of a new group gets."""
    results: list[list[bytes]] = [[] for _ in members]

    def member(rank: int) -> None:
        exchange = StoreExchange(store, rank, len(members), members)
        exchange(b"first", 10)
        results[rank] = exchange(str(members[rank]).encode(), 10)

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(len(members))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


def test_groups_made_one_after_the_other_in_one_store_do_not_mix() -> None:
    store = dist.HashStore()
    # Torch numbers groups anew after destroy_process_group, so other members come to the same keys.
    for members in ([0, 1, 2], [0, 1], [0, 1, 2], [1, 2], [0, 1]):
        expected = [str(member).encode() for member in members]
        assert exchanged(store, members) == [expected] * len(members)


def test_a_member_that_does_not_come_is_named() -> None:
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=1))
    with pytest.raises(Timeout, match=r"rank 0 waited 0.2 s for rank 1 \(of 2\)"):
        StoreExchange(store, 0, 2)(b"", 0.2)
