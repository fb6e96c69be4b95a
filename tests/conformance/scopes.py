"""What is run where. PYCOMM_CONFORMANCE=full crosses everything instead (minutes).

Segments of 64 bytes give many segments and windows for little work. With them, two and three threads run
every algorithm with every kind and count; more threads, and threads that see each other's memory, any two
of them; processes every algorithm with each. The transport's own segments follow, with counts around the
size where messages change their form, every algorithm with each kind and each count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pycomm
from pycomm import _core
from tests.conformance.cases import SMALL_BYTES, Registry, Scope
from tests.helpers import BETWEEN_THREADS

THREADS = (1, 2, 3, 4, 5, 8)
PROCESSES = (1, 2, 3, 4)
# Transports by what they connect; a new one is run without being named here.
BETWEEN_PROCESSES = [name for name in pycomm.info()["transports"] if name not in BETWEEN_THREADS]

# Layouts of ranks on nodes, for algorithms that follow them: a number for each rank (PYCOMM_NODES).
LAYOUTS_OF_THREADS = ((0, 1, 0, 0, 1), (0, 1, 2, 0, 1, 0, 0, 2))
LAYOUTS_OF_PROCESSES = ((0, 0, 1, 1),)

OWN_BYTES = 1 << 18  # what inproc, and mpi on one node, choose for themselves; twice what shm does
FULL = os.environ.get("PYCOMM_CONFORMANCE") == "full"


def registry() -> Registry:
    info = pycomm.info()
    return Registry(info["algorithms"], info["codecs"], info["transports"], _core.supports)


def followers() -> Registry:
    """What follows nodes."""
    whole = registry()
    algorithms = {name: row for name, row in whole.algorithms.items() if row["follows_nodes"]}
    assert {name.partition(":")[0] for name in algorithms} >= {"all_reduce", "reduce_scatter", "all_gather"}
    return replace(whole, algorithms=algorithms)


def scopes(transport: str, size: int) -> Iterator[Scope]:
    """The passes that one world makes."""
    small = (
        "algorithms"
        if transport in BETWEEN_PROCESSES or size == 8
        else "triples"
        if transport == "inproc" and size in (2, 3)
        else "pairs"
    )
    yield Scope("full" if FULL else small, SMALL_BYTES)
    if FULL or size < 4 or transport not in BETWEEN_PROCESSES:
        yield Scope("full" if FULL else "algorithms", OWN_BYTES)


def scopes_of_nodes(size: int) -> Iterator[Scope]:
    """The same for a world of threads on several nodes."""
    yield Scope("full" if FULL else "pairs" if size <= 5 else "algorithms", SMALL_BYTES)
    yield Scope("full" if FULL else "algorithms", OWN_BYTES)


def environment(scope: Scope) -> dict[str, str]:
    """What makes ranks use the segments of a scope."""
    return {"PYCOMM_SEGMENT_BYTES": str(scope.segment_bytes if scope.segment_bytes == SMALL_BYTES else 0)}
