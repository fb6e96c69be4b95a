"""A safetensors file written tensor by tensor, so that they need not be in memory together.

The format is eight bytes, JSON and data; the safetensors library writes it only from tensors that are all
there, so the few lines that write it are here.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO

import torch
from torch import Tensor

from trainer.state import bits

DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
    "bool": "BOOL", "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip

Kind = tuple[Sequence[int], torch.dtype]  # shape and dtype


def has_name(dtype: torch.dtype) -> bool:
    """Whether the format knows it."""
    return _name(dtype) in DTYPES


def file_order(kinds: Mapping[str, Kind]) -> list[str]:
    """The names as they come in the file: wide elements first, so that all are aligned."""
    return sorted(kinds, key=lambda name: (-kinds[name][1].itemsize, name))


def write_stream(
    file: BinaryIO, kinds: Mapping[str, Kind], tensors: Iterable[tuple[str, Tensor]], metadata: dict[str, str]
) -> None:
    """Writes a file of tensors of these kinds, which come in file_order(); each is looked at once."""
    header: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for name in file_order(kinds):
        shape, dtype = kinds[name]
        end = at + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[_name(dtype)], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for _, tensor in tensors:
        file.write(bits(tensor))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
