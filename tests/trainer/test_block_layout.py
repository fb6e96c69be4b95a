"""Flat buffers of blocks: a pure function of the model, the optimizer's groups and the number of ranks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.block_layout import block_layout, block_nbytes, frozen_layout, is_sharded
from trainer.blocks import partition
from trainer.gradients import slots_of


def model() -> nn.Sequential:
    """A block of two dtypes, one with a frozen bias, a frozen one, and none for integers."""
    made = nn.Sequential(
        nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8, dtype=torch.float64)),
        nn.Linear(8, 8),
        nn.Linear(8, 8).requires_grad_(False),
    )
    made[1].bias.requires_grad_(False)
    made[2].table = nn.Parameter(torch.arange(100), requires_grad=False)
    return made


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_bucket_has_one_block_group_and_dtype(ranks: int) -> None:
    made = model()
    groups = [{"params": [made[0][0].bias]}, {"params": [made[1].weight, *made[0][1].parameters()]}]
    groups[1]["params"].append(made[0][0].weight)
    slots = slots_of(made, torch.optim.SGD(groups, 0.1))
    layout = block_layout(partition(made), slots, ranks)
    inside: dict[int, set[tuple[str, int, torch.dtype]]] = {}
    for slot, (bucket, _, _) in zip(slots, layout.places, strict=True):
        inside.setdefault(bucket, set()).add((slot.name[0], slot.group, slot.parameter.dtype))
    assert all(len(kinds) == 1 for kinds in inside.values()) and len(inside) == 4
    assert all(size % (64 * ranks) == 0 for size in layout.sizes)
    # In the order in which backward fills them: the last block first.
    assert [next(iter(inside[bucket]))[0] for bucket in range(4)] == ["1", "0", "0", "0"]


def test_frozen_parameters_that_are_no_numbers_of_a_known_kind_stay_whole() -> None:
    made = model()
    frozen, layout = frozen_layout(partition(made), 2)
    assert [(block, parameter.numel()) for block, parameter in frozen] == [(2, 8), (3, 64), (3, 8)]
    assert sorted(layout.sizes) == [128, 128]
    assert not is_sharded(made[2].table)


def test_the_bytes_of_a_block_are_those_of_its_buffers() -> None:
    made = model()
    slots = slots_of(made, None)
    assert block_nbytes(partition(made), slots, 1) == [[], [8 * 128, 4 * 128], [4 * 64, 4 * 64], [4 * 128]]
    assert block_nbytes(partition(made), slots, 3)[2] == [4 * 192, 4 * 192]
