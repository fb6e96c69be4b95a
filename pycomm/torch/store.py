"""Everyone's bytes through a store of torch's: the exchange that precedes a group."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from pycomm.errors import Timeout


class StoreExchange:
    """Exchanges among `size` ranks, `members` of a larger group if given, through `store`. Making one, and
    each call, is collective; calls block.

    The ranks count themselves in, so that groups which are made one after the other in one store (torchrun's
    outlives process groups) do not read each other's keys.
    """

    def __init__(self, store: Any, rank: int, size: int, members: Sequence[int] = ()) -> None:
        self._store = store
        self._rank = rank
        self._size = size
        # Torch begins to number its groups anew when the default one is destroyed.
        who = f"pycomm/{size}/{'-'.join(map(str, members))}"
        self._group = f"{who}/{(store.add(f'{who}/arrivals', 1) - 1) // size}"
        self._round = 0

    def __call__(self, value: bytes, timeout_s: float) -> list[bytes]:
        """Everyone's value, by rank. Raises Timeout naming the first rank that did not come."""
        prefix = f"{self._group}/{self._round}"
        self._round += 1
        self._store.set(f"{prefix}/{self._rank}", value)
        return [self._value(f"{prefix}/{rank}", rank, timeout_s) for rank in range(self._size)]

    def _value(self, key: str, rank: int, timeout_s: float) -> bytes:
        try:
            self._store.wait([key], timedelta(seconds=timeout_s))
        except RuntimeError as error:  # torch's DistStoreError is one
            raise Timeout(
                f"rank {self._rank} waited {timeout_s} s for rank {rank} (of {self._size}) to make the "
                f"process group: {error}"
            ) from None
        return bytes(self._store.get(key))
