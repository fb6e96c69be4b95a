"""The ranks of a run as the yardstick sees them.

What synchronises the ranks and gathers their times must not be what is measured, so this stands on MPI's own
barrier and gather, a communicator apart; pycomm starts MPI and is one of the contenders.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import numpy as np
import numpy.typing as npt

import pycomm

Times = npt.NDArray[np.float64]


def own_address() -> str:
    """Where other nodes reach this one: by its name, or if that is the loopback's, the way out of here."""
    named = socket.gethostbyname(socket.gethostname())
    if not named.startswith("127."):
        return named
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; of a network that is nobody's (RFC 5737)
        return str(probe.getsockname()[0])


class Ranks:
    """Collective: every rank makes the same calls in the same order."""

    def __init__(self, comm: pycomm.Communicator) -> None:
        self.comm = comm
        self.rank = comm.rank
        self.size = comm.size
        self._own: Any = self.mpi().COMM_WORLD.Dup() if self.size > 1 else None

    def mpi(self) -> Any:
        """The module mpi4py.MPI, on the MPI library that pycomm uses. Starts MPI where nothing has."""
        os.environ.setdefault("MPI4PY_LIBMPI", pycomm.info()["mpi_path"])
        from mpi4py import MPI

        return MPI

    def barrier(self) -> None:
        if self._own is not None:
            self._own.Barrier()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        return [value] if self._own is None else self._own.allgather(value)

    def nodes(self) -> int:
        """On how many nodes they are."""
        return int(sum(rank == 0 for rank in self.gather(self.comm.local_rank)))

    def agree(self, decision: bool) -> bool:
        """Rank 0's decision."""
        return bool(self.gather(decision)[0])

    def worst(self, times: Times) -> Times:
        """Call by call, the longest time that any rank took."""
        return np.asarray(np.max(self.gather(times), axis=0), np.float64)
