"""A group of ranks: the collectives (pycomm/collectives.py), groups within it, its state."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from pycomm import _core
from pycomm.errors import InvalidArgument, MismatchError
from pycomm.explain import Explanation, explain
from pycomm.grouped import Grouped
from pycomm.mailbox import Mailbox, mailbox_of
from pycomm.persistent import Persistent, PersistentCollectives
from pycomm.plans import is_registered, prove
from pycomm.request import Request
from pycomm.tensors import dtype_name, empty_on, item_bytes
from pycomm.work import Work

T = TypeVar("T")


@dataclass
class World:
    """What the communicators of one engine share."""

    engine: _core.Engine
    nodes: Sequence[int]  # by world rank: a number that equals on ranks of one node
    cores: int  # that this rank has for itself
    next_context: int = 1  # of the next communicator made by split()
    splitting: threading.Lock = field(default_factory=threading.Lock)
    groups: weakref.WeakSet[Communicator] = field(default_factory=weakref.WeakSet)  # all of them


class Communicator(PersistentCollectives):
    """Ranks that talk to each other. Made by `pycomm.init()` and `split()`; usable from any thread."""

    def __init__(self, core: _core.Communicator, world: World) -> None:
        self._core = core
        self._world = world
        self._mailboxes: dict[int, Mailbox] = {}
        self._own: dict[tuple[str, str, int], _core.OwnAlgorithm] = {}
        mine = world.nodes[core.world_ranks[core.rank]]
        neighbours = [r for r, w in enumerate(core.world_ranks) if world.nodes[w] == mine]
        self.rank = core.rank
        self.size = core.size
        self.local_rank: int = neighbours.index(core.rank)
        self.local_size: int = len(neighbours)
        peers = {world.engine.transport_to(w) for r, w in enumerate(core.world_ranks) if r != core.rank}
        self._transport = "+".join(sorted(peers)) or "none"
        world.groups.add(self)

    def __repr__(self) -> str:
        return f"<pycomm.Communicator rank {self.rank} of {self.size}, transport {self.transport}>"

    def grouped(self) -> Grouped:
        """A `with` block whose calls start together; small all-reduces travel as one."""
        return Grouped(self)

    # ---- memory

    def empty(self, shape: int | Sequence[int], dtype: Any = np.float32) -> Any:
        """An uninitialised array that the other ranks of this node address where it lies: collectives on it
        spare a copy. A torch tensor for a torch dtype, else a NumPy array. Local: does not block, and the
        other ranks need not call it; any mix of such arrays and others may be passed to any call.

        The memory is given back when the array and all its views are gone; it may outlive `shutdown()`.
        Ordinary memory where no transport shares any (`pycomm.info()["transports"]`), or on a single rank. A
        forked child sees and changes the same memory.

        Raises TransportError when the rank's heap is full (`PYCOMM_HEAP_MB`; half of the machine's memory
        unless set, charged only as it is touched).
        """
        shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
        if any(length < 0 for length in shape):
            raise InvalidArgument(f"shape is {shape}; expected lengths of 0 or more")
        nbytes = math.prod(shape) * item_bytes(dtype)
        return empty_on(_core.allocate(self._core, nbytes) if nbytes else None, shape, dtype)

    # ---- messages of unknown sender and size

    def mailbox(self, tag: int) -> Mailbox:
        """The mailbox of this communicator with that tag, 0 to 65535; the same object for the same tag.
        Local: does not block, and the other ranks need not call it."""
        return mailbox_of(self._mailboxes, self._core, tag, self._world.engine.timeout_s)

    # ---- groups of ranks

    def split(self, color: int | None, key: int = 0) -> Communicator | None:
        """Make a communicator of the ranks that pass the same `color` (0 or more), in order of (key, rank).
        Blocks; all ranks call it.

        Ranks that pass None join none and get None. An MPI has tags for so many splits of a job, counting all
        that any rank has taken part in: 1023 with Open MPI.
        """
        if color is not None and not (isinstance(color, (int, np.integer)) and 0 <= color < 2**63):
            raise InvalidArgument(
                f"color is {color!r}; expected a whole number, 0 or more, or None to join no group"
            )
        if not (isinstance(key, (int, np.integer)) and -(2**63) <= key < 2**63):
            raise InvalidArgument(f"key is {key!r}; expected a whole number of 64 bits")
        with self._alone():
            return self._split(color, key)

    def subgroup(
        self, ranks: Sequence[int], exchange: Callable[[list[int]], Sequence[list[int]]]
    ) -> Communicator:
        """Make a communicator of some ranks of this one, in the order given. Blocks; they alone call it, with
        the same `ranks`, while `split` needs all.

        exchange: tells everyone in the group a list of integers and returns theirs, in the order of `ranks`;
        groups to which one rank belongs are made one after the other.
        """
        ranks = list(ranks)
        if self.rank not in ranks or len(set(ranks)) < len(ranks) or not set(ranks) <= set(range(self.size)):
            raise InvalidArgument(
                f"ranks is {ranks}; expected different ranks below {self.size}, {self.rank} among them"
            )
        world_ranks = [self._core.world_ranks[rank] for rank in ranks]
        with self._alone():
            mine = [self._world.next_context, self._core.preferred_segment_bytes(world_ranks)]
            contexts, segments = zip(*exchange(mine), strict=True)
            self._world.next_context = max(contexts) + 1
        core = self._core.subgroup(max(contexts), ranks.index(self.rank), world_ranks, min(segments))
        return Communicator(core, self._world)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Only one thread makes a group, since contexts are agreed one after the other."""
        if not self._world.splitting.acquire(blocking=False):
            raise InvalidArgument("another thread is making a group: do one after the other, on all ranks")
        try:
            yield
        finally:
            self._world.splitting.release()

    def _split(self, color: int | None, key: int) -> Communicator | None:
        mine = np.array([-1 if color is None else color, key, self._world.next_context], np.int64)
        rows = self.all_gather(mine).reshape(self.size, 3)
        context = int(rows[:, 2].max())
        self._world.next_context = context + 1  # the groups are disjoint: one context serves them all
        members = sorted(
            (r for r in range(self.size) if rows[r, 0] == mine[0]), key=lambda r: (rows[r, 1], r)
        )
        world_ranks = [self._core.world_ranks[r] for r in members]
        segments = self.all_gather(np.array([self._core.preferred_segment_bytes(world_ranks)], np.int64))
        if color is None:
            return None
        core = self._core.subgroup(
            context, members.index(self.rank), world_ranks, int(segments[members].min())
        )
        return Communicator(core, self._world)

    # ---- state

    @property
    def transport(self) -> str:
        """The transport to the other ranks: its name, several joined by "+", or "none" on a single rank."""
        return self._transport

    def transport_to(self, rank: int) -> str:
        """The transport to one rank; "none" to this one."""
        if not 0 <= rank < self.size:
            raise InvalidArgument(f"rank is {rank!r}; expected 0 to {self.size - 1}")
        if rank == self.rank:
            return "none"
        return self._world.engine.transport_to(self._core.world_ranks[rank])

    @property
    def nodes(self) -> list[list[int]]:
        """The ranks of each node, in order of their lowest ranks: those of one node address each other's
        memory, so that collectives reach it instead of sending. Found from who maps whom, not from host
        names; equal on all ranks."""
        return self._core.nodes

    @property
    def connections(self) -> list[int]:
        """Ranks of this communicator to which a connection is open: they are opened by the first message."""
        ranks = {world_rank: rank for rank, world_rank in enumerate(self._core.world_ranks)}
        return sorted(ranks[world] for world in self._world.engine.connections if world in ranks)

    @property
    def broken(self) -> Exception | None:
        """What broke this communicator; None while it works."""
        error: Exception | None = self._core.error()
        return error

    @property
    def progress(self) -> str:
        """ "thread": asynchronous operations advance by themselves; "inline": only while some call waits."""
        return "thread" if self._world.engine.has_progress_thread else "inline"

    @property
    def cores(self) -> int:
        """How many cores this rank has for itself (at least 1)."""
        return self._world.cores

    def explain(
        self,
        collective: str,
        nbytes: int,
        dtype: Any = np.float32,
        codec: str | None = None,
        algorithm: str | None = None,
        counts: bool = False,
        order: str = "any",
    ) -> Explanation:
        """How such a call is served: by which algorithm, chosen by what, over which transports, and how long
        each candidate is predicted to take. Local; moves nothing. `print()` shows it.

        nbytes: of the whole vector, what a rank reduces or an all_gather makes; of all_to_all, what each rank
        gives. algorithm, codec, dtype and order: as the call has them. counts: whether the call chooses the
        sizes of its parts. Raises InvalidArgument for names that there are not.

        >>> comm.explain("all_reduce", 1 << 20).by
        'model'
        """
        name = dtype_name(dtype, "the call")
        return explain(self._core, collective, nbytes, name, codec or "", counts, algorithm or "", order)

    def abort(self, why: str) -> None:
        """Break this communicator on all ranks: pending and later operations raise `Aborted` with `why`. Does
        not block."""
        self._core.abort(why)

    # ---- how the collectives run

    def _run(self, call: Request) -> None:
        self._core.run(self._planned(call) if call.algorithm else call)

    def _start(self, call: Request, result: T) -> Work[T]:
        return Work(self._core, self._core.start(self._planned(call)), result)

    def _prepare(self, call: Request, result: T) -> Persistent[T]:
        return Persistent(self._core, self._planned(call), result)

    def _planned(self, call: Request) -> Request:
        """The call with the plans of an algorithm that Python registered, proven and compared at first
        use."""
        name = call.algorithm
        if not name or not isinstance(name, str) or not is_registered(call.collective, name):
            return call
        key = (call.collective, name, call.root)
        if key not in self._own:
            own = prove(self._core, call.collective, name, call.root)
            digests = self.all_gather(np.array([own.digest])).tolist()
            different = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
            if different:
                raise MismatchError(
                    f"the plans of {call.collective}:{name} on rank {', '.join(map(str, different))} differ "
                    f"from rank 0's (of {self.size} ranks)"
                )
            self._own[key] = own
        return call._replace(algorithm=self._own[key])
