"""Memory whose pages are given back, at addresses that stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainer.pages import Pages


def resident_bytes(tensor: torch.Tensor) -> int:
    """Of the mapping that the tensor begins, as the kernel counts it."""
    begin = f"{tensor.data_ptr():x}-"
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(begin))
    return next(1024 * int(line.split()[1]) for line in lines[at:] if line.startswith("Rss:"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_released_pages_are_the_systems_again_and_come_back_as_zeros(dtype: torch.dtype) -> None:
    pages = Pages(1_000_003, dtype)
    view, address = pages.tensor[5:105].view(10, 10), pages.tensor.data_ptr()
    assert not pages.tensor.any()
    for _ in range(2):
        pages.tensor.fill_(3)
        assert bool((view == 3).all()) and resident_bytes(pages.tensor) >= pages.tensor.nbytes
        pages.release()
        assert resident_bytes(pages.tensor) == 0
        assert not view.any() and pages.tensor.data_ptr() == address
        assert resident_bytes(pages.tensor) <= 2 << 20  # one page, which may be a large one


def test_nothing_is_as_good_as_any_count() -> None:
    pages = Pages(0, torch.float64)
    pages.release()
    assert pages.tensor.shape == (0,) and pages.tensor.dtype == torch.float64
