"""Algorithms of your own, and a look at ours.

An algorithm says what each rank does: a `Plan`, stages of steps on numbered chunks, as csrc/plan/plan.h
explains (in short: steps of one stage are concurrent, chunk numbers mean the same elements on all ranks,
buffers are "input", "output" and "scratch[i]", which hold one chunk at a time). Register a function that
makes it, and any call takes it by name:

    from pycomm.plans import Plan, copy, recv, recv_reduce, register_algorithm, send

    def chain(rank, size):                       # partial sums up the ranks, the result down again
        plan, first, last = Plan(), rank == 0, rank == size - 1
        if first and last:
            return plan.stage(copy(0, "input", "output").final())
        if not first:
            plan.stage(recv_reduce(rank - 1, 0, "input", "output").final(last))
        if not last:
            plan.stage(send(rank + 1, 0, "input" if first else "output"))
            plan.stage(recv(rank + 1, 0, "output"))
        if not first:
            plan.stage(send(rank - 1, 0, "output").published(last))
        return plan

    register_algorithm("chain", chain, "all_reduce")
    comm.all_reduce(x, algorithm="chain")

At the first use on a communicator the plans of all its ranks are proven right, symbolically, before a byte
moves (or refused with what is wrong, where), and compared over the ranks; then they run as ours do: over any
transport, in segments, with codecs where the plans keep equal bits. That first call blocks.

`python -m pycomm.show all_reduce:ring -n 3` shows a plan of ours.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pycomm import _core
from pycomm.errors import InvalidArgument

Maker = Callable[..., "Plan"]  # of (rank, size), and root where the collective has one

COLLECTIVES = (
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "broadcast",
    "reduce",
    "gather",
    "scatter",
    "all_to_all",
)
ROOTED = ("broadcast", "reduce", "gather", "scatter")

_makers: dict[tuple[str, str], Maker] = {}  # by collective and name
_lock = threading.Lock()


@dataclass(frozen=True)
class Step:
    """One step, as the text of a plan has it. Made by the functions below."""

    text: str
    is_final: bool = False
    is_published: bool = False

    def final(self, it_is: bool = True) -> Step:
        """After this step its destination holds the complete reduction: scales are applied here."""
        return replace(self, is_final=it_is)

    def published(self, it_is: bool = True) -> Step:
        """The receiver keeps what this sends, so the sender keeps the same bits under a lossy codec."""
        return replace(self, is_published=it_is)

    def __str__(self) -> str:
        return self.text + ", final" * self.is_final + ", published" * self.is_published


def send(peer: int, chunk: int, src: str) -> Step:
    """`src` -> peer."""
    return Step(f"send chunk {chunk} of {src} to {peer}")


def recv(peer: int, chunk: int, dst: str) -> Step:
    """Peer -> `dst`."""
    return Step(f"recv chunk {chunk} from {peer} into {dst}")


def recv_reduce(peer: int, chunk: int, src: str, dst: str) -> Step:
    """`dst` = `src` (+) what the peer sends; they may be the same."""
    return Step(f"recv_reduce chunk {chunk} of {src} and from {peer} into {dst}")


def copy(chunk: int, src: str, dst: str) -> Step:
    """`src` -> `dst`, on this rank."""
    return Step(f"copy chunk {chunk} of {src} into {dst}")


def reduce(chunk: int, sources: Sequence[str], dst: str) -> Step:
    """`dst` = sources[0] (+) sources[1] (+) ..., on this rank."""
    return Step(f"reduce chunk {chunk} of {', '.join(sources)} into {dst}")


def meet(peers: Sequence[int]) -> Step:
    """Wait until these peers have come here too; between two meets their memory may be reached."""
    return Step(f"meet {', '.join(map(str, peers))}")


def reduce_from(peers: Sequence[int], chunk: int, src: str, dst: str) -> Step:
    """`dst` = the reduction, in order of rank, of `src` of these ranks, this one among them."""
    return Step(f"reduce_from chunk {chunk} of {src} of {', '.join(map(str, peers))} into {dst}")


def store_to(peers: Sequence[int], chunk: int, src: str, dst: str) -> Step:
    """`src` -> `dst` of each of these peers."""
    return Step(f"store_to chunk {chunk} of {src} into {dst} of {', '.join(map(str, peers))}")


class Plan:
    """What one rank does. `chunks`: in how many parts the vector is cut. Collectives whose ranks give or get
    parts cut it in `size`; all_to_all in size ** 2: chunk i * size + j is what rank i gives to rank j."""

    def __init__(self, chunks: int = 1) -> None:
        self.chunks = chunks
        self.stages: list[list[Step]] = []

    def stage(self, *steps: Step) -> Plan:
        """Append a stage of steps that are concurrent. Returns the plan."""
        self.stages.append(list(steps))
        return self

    def __str__(self) -> str:
        lines = [f"chunks {self.chunks}"]
        for number, steps in enumerate(self.stages):
            lines += [f"stage {number}", *(f"  {step}" for step in steps)]
        return "\n".join(lines) + "\n"


def register_algorithm(name: str, plan: Maker, collective: str = "all_reduce") -> None:
    """Let `algorithm=name` mean `plan(rank, size)`, or `plan(rank, size, root)` where there is a root. A
    function with a parameter `nodes` is given `comm.nodes` too: `meet`, `reduce_from` and `store_to` reach
    ranks of the own node only.

    Register the same on all ranks. Raises InvalidArgument when the name is taken or the collective unknown;
    whether the plans are right is found at the first use, for that number of ranks.
    """
    if collective not in COLLECTIVES:
        raise InvalidArgument(f"no collective {collective!r}; there is {', '.join(COLLECTIVES)}")
    if not name or not name.replace("_", "").isalnum():
        raise InvalidArgument(f"name is {name!r}; expected letters, digits and underscores")
    with _lock:
        if (collective, name) in _makers or f"{collective}:{name}" in _core.algorithms():
            raise InvalidArgument(f"there is an algorithm {name!r} for {collective} already")
        _makers[collective, name] = plan


def is_registered(collective: str, name: str) -> bool:
    """Whether register_algorithm() was called with these."""
    return (collective, name) in _makers


def prove(comm: _core.Communicator, collective: str, name: str, root: int) -> _core.OwnAlgorithm:
    """The plans of all ranks, proven right; raises InvalidArgument that says what is wrong, and where."""
    maker = _makers[collective, name]
    arguments = (root,) if collective in ROOTED else ()
    asked = {"nodes": comm.nodes} if "nodes" in inspect.signature(maker).parameters else {}
    plans = [str(maker(r, comm.size, *arguments, **asked)) for r in range(comm.size)]
    numbers = {rank: number for number, node in enumerate(comm.nodes) for rank in node}
    nodes = [numbers[rank] for rank in range(comm.size)]
    return _core.OwnAlgorithm(collective, root, name, plans, comm.rank, nodes)
