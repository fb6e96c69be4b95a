"""Activation recomputation: a block keeps what went into it, and backward computes the rest again (Chen et
al., "Training Deep Nets with Sublinear Memory Cost", 2016). Dropout draws the same bits the second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from trainer.errors import TrainerError


def blocks_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """By name, the children of the outermost ModuleLists and Sequentials: what a deep model repeats."""

    def within(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        listed = isinstance(module, nn.ModuleList | nn.Sequential)
        for child_name, child in module.named_children():
            path = f"{name}.{child_name}".lstrip(".")
            if listed:
                yield path, child
            else:
                yield from within(path, child)

    return within("", model)


def recompute_blocks(model: nn.Module) -> int:
    """Makes each block with parameters keep its inputs alone; returns how many there are. Names stay.

    Raises TrainerError for a model without blocks, and for BatchNorm in one, which would count a batch twice.
    """
    blocks = [(name, block) for name, block in blocks_of(model) if any(True for _ in block.parameters())]
    if not blocks:
        raise TrainerError(
            "recompute: the model has no blocks: expected some in a ModuleList or Sequential, got "
            f"{type(model).__name__}"
        )
    for name, block in blocks:
        if any(isinstance(module, _BatchNorm) for module in block.modules()):
            raise TrainerError(f"recompute: {name} has a BatchNorm, which would count each batch twice")
    for _, block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return len(blocks)
