"""Which elements each rank gives and gets."""

from __future__ import annotations

import random


def equal_parts(count: int, size: int) -> list[int]:
    """As numpy.array_split cuts."""
    return [count // size + (1 if rank < count % size else 0) for rank in range(size)]


def chosen_parts(count: int, size: int, seed: int) -> list[int]:
    """Unequal parts, some of them empty, the same wherever this is asked."""
    draw = random.Random(f"{count} {size} {seed}")
    cuts = sorted(draw.choice((0, count, draw.randint(0, count))) for _ in range(size - 1))
    return [end - begin for begin, end in zip([0, *cuts], [*cuts, count], strict=True)]


def places(parts: list[int]) -> list[slice]:
    """Where each part lies when they lie end to end."""
    begins = [sum(parts[:rank]) for rank in range(len(parts))]
    return [slice(begin, begin + part) for begin, part in zip(begins, parts, strict=True)]
