"""Where the parts of parameters lie that are gathered block by block: a flat buffer for each block, optimizer
group and dtype, cut as all others are (trainer/layout.py). Frozen parameters have buffers of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

import pycomm
from trainer.blocks import Members
from trainer.exact import Exact, cuts
from trainer.gradients import Slot
from trainer.layout import ShardLayout, shard_layout

ONE_BUCKET = 1 << 62  # bytes: what belongs together is not split
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def block_layout(
    members: Sequence[Members], slots: Sequence[Slot], ranks: int, exact: Exact | None = None
) -> ShardLayout:
    """A bucket for each block, optimizer group and dtype; in the order of slots."""
    block_of = {id(p): index for index, part in enumerate(members) for p in part.parameters}
    groups = 1 + max(slot.group for slot in slots)
    places = [
        pycomm.Slot(
            slot.parameter.numel(),
            slot.parameter.dtype,
            block_of[id(slot.parameter)] * groups + slot.group,
        )
        for slot in slots
    ]
    return shard_layout(places, ranks, ONE_BUCKET, **cuts(exact))


def frozen_layout(
    members: Sequence[Members], ranks: int
) -> tuple[list[tuple[int, nn.Parameter]], ShardLayout]:
    """The parameters that need no gradient and are sharded, with the numbers of their blocks; and buckets for
    them, as above."""
    frozen = [
        (index, parameter)
        for index, part in enumerate(members)
        for parameter in part.parameters
        if is_sharded(parameter) and not parameter.requires_grad
    ]
    places = [pycomm.Slot(parameter.numel(), parameter.dtype, block) for block, parameter in frozen]
    return frozen, shard_layout(places, ranks, ONE_BUCKET)


def is_sharded(parameter: nn.Parameter) -> bool:
    """Frozen ones need not be numbers that can be sent, or be not-a-number."""
    return parameter.requires_grad or parameter.dtype in FLOATS


def block_nbytes(
    members: Sequence[Members], slots: Sequence[Slot], ranks: int, exact: Exact | None = None
) -> list[list[int]]:
    """By block, the bytes of its flat buffers."""
    block_of = {id(p): index for index, part in enumerate(members) for p in part.parameters}
    trained = block_layout(members, slots, ranks, exact)
    frozen, layout = frozen_layout(members, ranks)
    nbytes: list[list[int]] = [[] for _ in members]
    for shards, owners in (
        (trained, [block_of[id(slot.parameter)] for slot in slots]),
        (layout, [block for block, _ in frozen]),
    ):
        for bucket, (size, dtype) in enumerate(zip(shards.sizes, shards.dtypes, strict=True)):
            first = next(slot for slot, place in enumerate(shards.places) if place[0] == bucket)
            nbytes[owners[first]].append(size * int(getattr(torch, dtype).itemsize))
    return nbytes
