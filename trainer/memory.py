"""Bytes that a rank holds for a model's parameters, gradients and optimizer state: measured, and by formula.

With p, g and s bytes per parameter and N ranks: data_parallel p + g + s, zero1 p + g + s/N, zero2
p + g/N + s/N, zero3 (p + g + s)/N (Rajbhandari et al., SC 2020); 4, 4 and 8 for Adam in float32. Buckets are
padded, and zero2 and zero3 have a pool of them besides; zero3 has, while it computes, its root and two blocks
of parameters. Activations, and what else a step holds for a moment, as exact mode does the gradients of a
rank's other shards, are not counted.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pycomm import Communicator
from pycomm.buckets import layout
from trainer.block_layout import block_layout, block_nbytes, is_sharded
from trainer.blocks import Choice, gathered_at_once, partition
from trainer.exact import Exact, cuts
from trainer.gradients import Slot
from trainer.layout import shard_layout
from trainer.master_weights import Copies

STRATEGIES = ("data_parallel", "zero1", "zero2", "zero3")  # those with a formula
POOL = 2  # zero2's and zero3's buckets of gradients that have memory at a time, unless told otherwise
StateBytes = Mapping[torch.dtype, int]  # of the optimizer's state, per element, by the parameter's dtype
PROBE = 4096  # elements of a measurement


@dataclass(frozen=True)
class Held:
    """Bytes on one rank."""

    parameters: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer


def measured(
    parameters: int, gradients: int, optimizer: torch.optim.Optimizer | None, masters: int = 0
) -> Held:
    """With the tensors that are in the optimizer's state. `masters`: bytes of master weights."""
    states = optimizer.state.values() if optimizer else ()
    tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return Held(parameters, gradients, masters + sum(tensor.nbytes for tensor in tensors))


def estimate(
    strategy: str,
    model: nn.Module,
    slots: Sequence[Slot],
    state_bytes: StateBytes,
    ranks: int,
    bucket_bytes: int,
    pool: int,
    *,
    shared: bool,
    exact: Exact | None = None,
    blocks: Choice = None,
) -> Held:
    """What a rank of `ranks` will hold, the average one. `shared`: where owners update parameters that all
    have, the ranks have one copy of them. `blocks`: those of zero3."""
    places = [slot.place for slot in slots]
    state = sum(slot.parameter.numel() * state_bytes[slot.parameter.dtype] for slot in slots)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    if strategy == "data_parallel" and exact is None:
        _, sizes, dtypes = layout(places, bucket_bytes)
        return Held(parameters, sum(_nbytes(sizes, dtypes)), state)
    owners = 1 if strategy == "data_parallel" else ranks
    members = partition(model, blocks) if strategy == "zero3" else []
    if members:
        shards = block_layout(members, slots, ranks, exact)
    else:
        shards = shard_layout(places, owners, bucket_bytes, **cuts(exact))
    buckets = _nbytes(shards.sizes, shards.dtypes)
    gradients = sum(buckets)
    if strategy in ("zero2", "zero3") and pool < len(buckets):
        gradients = sum(buckets) // ranks + sum(max(buckets[lane::pool]) for lane in range(pool))
    if members:
        sharded = [sum(by_dtype) for by_dtype in block_nbytes(members, slots, ranks, exact)]
        rest = parameters - sum(p.nbytes for part in members for p in part.parameters if is_sharded(p))
        return Held(rest + sum(sharded) // ranks + gathered_at_once(sharded), gradients, state // ranks)
    frozen = parameters - sum(slot.parameter.nbytes for slot in slots)
    return Held(frozen + sum(buckets) // (ranks if shared else 1), gradients, state // owners)


def per_parameter(
    strategy: str, ranks: int, slots: Sequence[Slot], state_bytes: StateBytes, *, shared: bool
) -> float | None:
    """Bytes for each element of `slots`, by the formula; None for strategies without one. `shared`: the ranks
    have one copy of the parameters."""
    if strategy not in STRATEGIES:
        return None
    parts = STRATEGIES.index(strategy)  # in how many ways it shards
    parameter_ranks = ranks if shared or parts > 2 else 1
    gradient_ranks, state_ranks = (ranks if parts > 1 else 1), (ranks if parts > 0 else 1)
    total = sum(
        slot.parameter.nbytes * (1 / parameter_ranks + 1 / gradient_ranks)
        + slot.parameter.numel() * state_bytes[slot.parameter.dtype] / state_ranks
        for slot in slots
    )
    return total / sum(slot.parameter.numel() for slot in slots)


def state_bytes(
    make: Callable[[Iterable[Tensor]], torch.optim.Optimizer], slots: Sequence[Slot], *, masters: bool = False
) -> StateBytes:
    """What one step leaves in the state of such an optimizer, made for a small parameter of each dtype; with
    the `masters` of 16-bit ones."""
    found = {}
    for dtype in {slot.parameter.dtype for slot in slots}:
        parameter = nn.Parameter(torch.zeros(PROBE, dtype=dtype))
        probe = Copies().of(parameter, parameter) if masters else parameter
        trial = make([probe])
        probe.grad = torch.zeros_like(probe)
        trial.step()
        tensors = (value for value in trial.state[probe].values() if isinstance(value, Tensor))
        held = sum(tensor.nbytes for tensor in tensors) + (0 if probe is parameter else probe.nbytes)
        found[dtype] = held // PROBE
    return found


def most(held: Held | None, comm: Communicator) -> dict[str, int] | None:
    """The largest of all ranks, by kind. Collective, blocks."""
    if held is None:
        return None
    kinds = asdict(held)
    largest = comm.all_reduce(np.array(list(kinds.values()), np.int64), op="max").tolist()
    return dict(zip(kinds, largest, strict=True))


def line(memory: dict[str, Any], peak_rss: int) -> str:
    """A line of what summary.json holds."""
    kinds = ", ".join(f"{kind} {count / 1e6:,.2f} MB" for kind, count in memory["bytes_per_rank"].items())
    by_formula = "" if memory["formula"] is None else f" (formula: {memory['formula']:.2f})"
    return (
        f"memory per rank: {kinds}; {memory['bytes_per_parameter']:.2f} bytes per parameter{by_formula}; "
        f"the process had {peak_rss / 1e6:,.0f} MB at most"
    )


def peak_rss_bytes() -> int:
    """The most that this process ever had in memory, of which the libraries alone take some 300 MB."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _nbytes(sizes: Sequence[int], dtypes: Sequence[str]) -> list[int]:
    return [size * int(getattr(torch, dtype).itemsize) for size, dtype in zip(sizes, dtypes, strict=True)]
