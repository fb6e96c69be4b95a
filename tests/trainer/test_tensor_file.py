"""Files written tensor by tensor are those that safetensors reads."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from trainer.state import bits
from trainer.tensor_file import DTYPES, file_order, write_stream


def test_every_dtype_and_shape_comes_back_with_the_metadata(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {"nothing": torch.empty(0, 3), "number": torch.tensor(7.5)}
    for index, name in enumerate(DTYPES):
        tensors[f"of.{name}"] = (torch.arange(3 + index) % 2).to(getattr(torch, name))
    tensors["turned"] = torch.randn(2, 5).t()
    kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    looked_at: list[str] = []

    def one_by_one() -> object:
        for name in file_order(kinds):
            looked_at.append(name)
            yield name, tensors[name]

    path = tmp_path / "all.safetensors"
    with path.open("wb") as file:
        write_stream(file, kinds, one_by_one(), {"step": "3"})
    assert looked_at == file_order(kinds) and sorted(looked_at) == sorted(tensors)
    got = load_file(path)
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(got[name]) == bits(tensor), name
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"step": "3"}


def test_wide_elements_come_first_so_that_all_are_aligned() -> None:
    kinds = {"c": ((3,), torch.int8), "b": ((1,), torch.float64), "a": ((5,), torch.float16)}
    assert file_order(kinds) == ["b", "a", "c"]
