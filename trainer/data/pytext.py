"""Text that every machine has: the source of the running Python's standard library, as bytes.

Files are joined by a zero byte, in an order drawn with the seed (of the sorted paths, so that equal Pythons
give equal text), without test folders and installed packages. The text is cut into training, validation and
test text first, and each of these into windows of length + 1 bytes that overlap by one: inputs are a window's
first `length` bytes, targets its last. So no two splits share a byte, and in a split every byte but the first
is a target once; what does not fill a window at the end of a split is left out.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.data import DATA, NEXT_BYTE, Dataset, Split
from trainer.errors import TrainerError
from trainer.splits import hold_out

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@DATA.register("pytext")
def pytext(
    seed: int,
    length: int = 64,
    limit_bytes: int | None = 1_000_000,
    test_fraction: float = 0.05,
    validation_fraction: float = 0.0,
) -> Dataset:
    """`length`: bytes that a model sees at once. `limit_bytes`: how much text; None: all, about 12 MB."""
    if length < 1 or (limit_bytes is not None and limit_bytes < 1):
        raise TrainerError(
            f"data 'pytext': expected length and limit_bytes of 1 or more, got {length} and {limit_bytes}"
        )
    files = source_files(Path(sysconfig.get_path("stdlib")))
    order = np.random.default_rng(seed).permutation(len(files))
    text = torch.frombuffer(_text((files[index] for index in order), limit_bytes), dtype=torch.uint8)
    train, validation, test = hold_out(text, test_fraction, validation_fraction)
    return Dataset(
        _windows("training", train, length),
        _windows("test", test, length),
        NEXT_BYTE,
        {"vocabulary": 256, "context": length},
        _windows("validation", validation, length) if len(validation) else None,
    )


def source_files(root: Path) -> list[Path]:
    """The library's own Python files below `root`, sorted."""
    files = sorted(
        path for path in root.rglob("*.py") if not LEFT_OUT.intersection(path.relative_to(root).parts[:-1])
    )
    if not files:
        raise TrainerError(f"data 'pytext': this Python has no source files in {root}")
    return files


def _text(files: Iterable[Path], limit_bytes: int | None) -> bytearray:
    text = bytearray()
    for file in files:
        text += file.read_bytes() + b"\0"
        if limit_bytes is not None and len(text) >= limit_bytes:
            return text[:limit_bytes]
    return text


def _windows(name: str, text: Tensor, length: int) -> Split:
    if len(text) <= length:
        raise TrainerError(
            f"data 'pytext': expected more than {length} bytes (length) for {name}, got {len(text)}"
        )
    windows = text.unfold(0, length + 1, length)  # a view: the text is in memory once
    return windows[:, :-1], windows[:, 1:]
