"""Exact mode: a run has the same bits on 1, 2, 4, … ranks, under every strategy that takes part.

What would make them differ, and what is done about it:

- Sums in floating point depend on how they are grouped. The global batch is cut into `shards` logical shards,
  a power of two, of which each rank has equally many, in a row. Gradients are summed as a tree over the
  shards: a rank adds its own up (trainer/tree.py), and ranks go on in order "tree" (csrc/DESIGN.md,
  "Numerics"). Of losses and evaluations all ranks get every shard's sum.
- The bits of a matrix product may depend on its sizes: each logical shard has its own forward and backward,
  and draws its own random numbers (trainer/streams.py). Threads divide products: a rank computes with one.
- The bits of an element's update may depend on where it lies in the tensor that is stepped: torch's kernels
  compute what fills no vector register in another way. Every strategy steps the same tensors at the same
  alignment: the pieces into which `shards` ranks would cut the model (trainer/layout.py). Those of zero3's
  blocks are others, but also begin and end at multiples of BLOCK elements of a parameter, or with it.
- Norms are trees over blocks of BLOCK elements of each parameter, at whose borders pieces begin and end.

It costs smaller matrix products, compute threads, and, where a rank has several shards, the memory of at most
log2(shards / ranks) + 1 whole gradients, under every strategy. Another version of torch, or another kind of
processor, may still give other bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from trainer.errors import TrainerError

if TYPE_CHECKING:
    from trainer.config import FitConfig

DEFAULT_SHARDS = 8
BLOCK = 4096  # elements


@dataclass(frozen=True)
class Exact:
    """What of a run is exact: the number of its logical shards."""

    shards: int

    def __post_init__(self) -> None:
        if self.shards < 1 or self.shards & (self.shards - 1):
            raise TrainerError(f"shards: expected a power of two (1, 2, 4, …), got {self.shards}")

    def check_ranks(self, ranks: int) -> None:
        if ranks < 1 or self.shards % ranks:
            possible = [str(1 << power) for power in range(self.shards.bit_length())]
            raise TrainerError(
                f"exact: {self.shards} logical shards cannot be shared out evenly among {ranks} ranks: "
                f"expected {' or '.join(possible)} ranks, or other shards"
            )


def of(config: FitConfig) -> Exact | None:
    if not config.exact:
        return None
    return Exact(DEFAULT_SHARDS if config.shards is None else config.shards)


def cuts(exact: Exact | None) -> dict[str, int]:
    """What shard_layout() has to be told."""
    return {} if exact is None else {"cut": BLOCK, "shards": exact.shards}


def check(config: FitConfig) -> None:
    """Raises TrainerError for options that exact mode refuses."""
    if of(config) is None:
        if config.shards is not None:
            raise TrainerError("shards belongs to exact: give exact too")
        return
    for name, expected, why in (
        ("codec", "none", "it rounds what each rank brings, which depends on their number"),
        ("grad_reduction", "global_mean", "means of ranks depend on their number"),
        ("batch_per_rank", None, "the global batch would grow with the ranks; give global_batch"),
        ("accumulate", 1, "each logical shard has a pass of its own already"),
        ("sync_batchnorm", False, "statistics of several samples depend on which go together"),
        ("data_local", False, "each rank has samples of its own"),
        ("threads", (None, 1), "threads share out a product by their number"),
    ):
        value = getattr(config, name)
        if value not in (expected if isinstance(expected, tuple) else (expected,)):
            raise TrainerError(f"exact cannot have {name} {value}: {why}")


def kept(config: FitConfig) -> dict[str, Any]:
    """Options that decide the bits of an exact run, and elsewhere only how it is computed."""
    exact = of(config)
    return {} if exact is None else {"shards": exact.shards, "bucket_mb": config.bucket_mb}


def check_model(model: nn.Module) -> None:
    """Raises TrainerError for a model whose bits would depend on which samples, or ranks, go together."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) or (isinstance(module, _NormBase) and module.track_running_stats):
            raise TrainerError(
                f"exact refuses {type(module).__name__}{f' ({name})' if name else ''}: its statistics are of "
                "samples that happen to be computed together; those of LayerNorm and GroupNorm are of one"
            )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype not in (torch.float32, torch.float64):
            raise TrainerError(
                f"exact: expected parameters of float32 or float64, got {parameter.dtype} for {name}: sums "
                "of narrower ones are rounded where ranks meet"
            )


class BufferWatch:
    """Notices forwards that change a model's buffers, as running statistics do."""

    def __init__(self, buffers: Iterable[tuple[str, Tensor]]) -> None:
        self._before = {name: (buffer, buffer._version) for name, buffer in buffers}

    def trouble(self, buffers: Iterable[tuple[str, Tensor]]) -> TrainerError | None:
        """With the buffers as they are now."""
        for name, buffer in buffers:
            before, version = self._before.get(name, (None, -1))
            if buffer is not before or buffer._version != version:
                return TrainerError(
                    f"exact: a forward changes the buffer {name}, which then depends on the logical shards "
                    "that this rank has"
                )
        return None
