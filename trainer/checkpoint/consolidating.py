"""A checkpoint's model as one file of weights, as `fit` leaves them, for safetensors alone and for `predict`.

No more than one tensor is in memory at a time.
"""

from __future__ import annotations

from pathlib import Path

from trainer.checkpoint.slices import MODEL
from trainer.checkpoint.stored import Checkpoint
from trainer.files import replacing
from trainer.state import hash_of
from trainer.tensor_file import file_order, write_stream


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
        kinds = {name: (checkpoint.shape(stored), checkpoint.dtype(stored)) for name, stored in names.items()}
        tensors = ((name, checkpoint.tensor(names[name])) for name in file_order(kinds))
        with replacing(out) as partial, partial.open("wb") as file:
            write_stream(file, kinds, tensors, header)
        return checkpoint.step
