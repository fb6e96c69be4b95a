"""A checkpoint's model as one file of weights, as `fit` leaves them, for safetensors alone and for `predict`.

No more than one tensor is in memory at a time. The format is eight bytes, JSON and data; the safetensors
library writes it only from tensors that are all there, so the few lines that write it are here.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import BinaryIO

from trainer.checkpoint.slices import MODEL
from trainer.checkpoint.stored import Checkpoint
from trainer.files import replacing
from trainer.state import bits, hash_of

DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def consolidate(path: Path, out: Path) -> int:
    """Writes `out`, a `state_dict` by name; returns after which step it is. One process calls it.

    Raises TrainerError for a checkpoint that is not whole, and if `out` cannot be written.
    """
    with Checkpoint(path) as checkpoint:
        checkpoint.verify()
        names: dict[str, str] = {name: MODEL + first for name, first in checkpoint.index["names"].items()}
        header = {
            "format": "pt",
            "step": str(checkpoint.step),
            "data_sha256": checkpoint.index["data_sha256"],
        }
        # In the order of names, as parameters_sha256 and its kin; the file's order is that of alignment.
        header["state_sha256"] = hash_of((name, checkpoint.tensor(names[name])) for name in sorted(names))
        with replacing(out) as partial, partial.open("wb") as file:
            _write(file, checkpoint, names, header)
        return checkpoint.step


def _write(file: BinaryIO, checkpoint: Checkpoint, names: dict[str, str], metadata: dict[str, str]) -> None:
    order = sorted(names, key=lambda name: (-checkpoint.dtype(names[name]).itemsize, name))
    header: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for name in order:
        shape, dtype = checkpoint.shape(names[name]), checkpoint.dtype(names[name])
        end = at + math.prod(shape) * dtype.itemsize
        known = DTYPES[str(dtype).removeprefix("torch.")]
        header[name] = {"dtype": known, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in order:
        file.write(bits(checkpoint.tensor(names[name])))
