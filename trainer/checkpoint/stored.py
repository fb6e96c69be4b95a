"""A checkpoint on the disk: a folder of safetensors files, and an index that says what is where.

    checkpoints/step-000100/
        index.json              what the run was, the files with their hashes, the tensors with their slices
        part-0.safetensors      slices that one rank wrote, each a vector under `NAME[first:end]`
        best.safetensors        the weights of the lowest validation loss up to there, if there are any

The folder is written as `step-000100.partial`, file by file, and gets its name when all of it is on the disk:
a checkpoint is whole or is none. How many ranks wrote it shows in the number of files and decides nothing.
torch's distributed checkpoints would bring the same slices, with a pickled index.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.checkpoint.slices import MODEL, OPTIMIZER, Slice
from trainer.errors import TrainerError
from trainer.files import reading, replacing, to_disk, writing
from trainer.weights import BEST, write_tensors

FOLDER, INDEX, PARTIAL = "checkpoints", "index.json", ".partial"
FORMAT, VERSION = "pycomm checkpoint", 1
READ_COUNT = 4 << 20  # elements that are read at once
_STEP = re.compile(r"step-(\d{6,})")

Record = dict[str, Any]  # what goes into an index


def folder_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def saved(folder: Path) -> dict[int, Path]:
    """The checkpoints in a run's folder of them, by step, in that order."""
    if not folder.is_dir():
        return {}
    found = ((_STEP.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


# ---- writing


def write_part(folder: Path, number: int, slices: Sequence[Slice]) -> Record:
    """Writes one rank's slices; returns what the index needs to know of them. Raises TrainerError for
    parameters that are not finite, and if there is no room."""
    for part in slices:
        if part.name.startswith(MODEL) and not part.buffer and not _finite(part.data):
            raise TrainerError(f"{part.name.removeprefix(MODEL)} is not finite and was not saved in {folder}")
    record: Record = {
        "slices": [
            [part.name, _dtype_name(part.data.dtype), list(part.shape), part.offset, len(part.data)]
            for part in slices
        ]
    }
    if slices:
        name = f"part-{number}.safetensors"
        with replacing(folder / name) as partial:
            write_tensors(
                partial, {_key(part.name, part.offset, len(part.data)): part.data for part in slices}
            )
        record |= {"file": name, **fingerprint(folder / name)}
    return record


def publish(folder: Path, facts: Record, records: Iterable[Record]) -> None:
    """Gives a folder whose files are all written its index, and its name. Raises TrainerError."""
    files: dict[str, Record] = {}
    tensors: dict[str, Record] = {}
    for record in records:
        if "file" in record:
            files[record["file"]] = {"bytes": record["bytes"], "sha256": record["sha256"]}
        for name, dtype, shape, offset, count in record["slices"]:
            tensor = tensors.setdefault(name, {"dtype": dtype, "shape": shape, "slices": []})
            tensor["slices"].append([offset, count, record["file"]])
    for tensor in tensors.values():
        tensor["slices"].sort()
    partial = folder.with_name(folder.name + PARTIAL)
    _check_files(partial, files, "another rank wrote it: is --out one folder for all ranks?")
    index = {"format": FORMAT, "version": VERSION, **facts, "files": files, "tensors": tensors}
    with replacing(partial / INDEX) as path:
        path.write_text(json.dumps({**index, "sha256": _index_sha256(index)}, indent=1, allow_nan=False))
    with writing(folder):
        partial.rename(folder)
        to_disk(folder.parent)


def fingerprint(path: Path) -> Record:
    """A file's length and hash. Raises TrainerError if it cannot be read."""
    sha256 = hashlib.sha256()
    with reading(path), path.open("rb", buffering=0) as file:
        while block := file.read(1 << 20):
            sha256.update(block)
        size = os.fstat(file.fileno()).st_size
    return {"bytes": size, "sha256": sha256.hexdigest()}


# ---- reading


class Checkpoint:
    """One that was found; a SliceReader within `with`. Nothing of it is executed or unpickled."""

    def __init__(self, path: Path) -> None:
        """Reads the index and looks at the files' lengths. Raises TrainerError that names the file."""
        self.path = path
        self.index = _read_index(path / INDEX)
        self.step: int = self.index["step"]
        _check_files(path, self.index["files"], "the checkpoint is not whole")
        self._tensors: dict[str, Record] = self.index["tensors"]
        for name, tensor in self._tensors.items():
            _check_cover(name, tensor, path / INDEX)
        self._open = ExitStack()
        self._files: dict[str, safe_open] = {}

    @property
    def best(self) -> Path | None:
        return self.path / BEST if BEST in self.index["files"] else None

    def verify(self, part: int = 0, parts: int = 1) -> None:
        """Reads every `parts`-th file whole. Raises TrainerError for the first that was altered."""
        for name, expected in list(self.index["files"].items())[part::parts]:
            got = fingerprint(self.path / name)["sha256"]
            if got != expected["sha256"]:
                raise TrainerError(
                    f"{self.path / name} is damaged: expected sha256 {expected['sha256']}, got {got}"
                )

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name]["shape"])

    def dtype(self, name: str) -> torch.dtype:
        return _dtype(self._tensors[name]["dtype"])

    def states(self, parameter: str) -> list[str]:
        prefix = f"{OPTIMIZER}{parameter}."
        keys = [name.removeprefix(prefix) for name in self._tensors if name.startswith(prefix)]
        return [key for key in keys if "." not in key]

    def read(self, name: str, out: Tensor, offset: int = 0) -> None:
        end = offset + len(out)
        if out.dtype != self.dtype(name) or end > math.prod(self.shape(name)):
            raise TrainerError(
                f"{self.path}: {name} is {self.dtype(name)} of {math.prod(self.shape(name))} elements; "
                f"asked for {offset} to {end} as {out.dtype}"
            )
        for first, count, file in self._tensors[name]["slices"]:
            for at in range(max(first, offset), min(first + count, end), READ_COUNT):
                until = min(at + READ_COUNT, first + count, end)
                stored = self._stored(file, _key(name, first, count), at - first, until - first)
                out[at - offset : until - offset] = stored

    def tensor(self, name: str) -> Tensor:
        """The whole of it."""
        flat = torch.empty(math.prod(self.shape(name)), dtype=self.dtype(name))
        self.read(name, flat)
        return flat.view(self.shape(name))

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.clear()
        self._open.close()

    def _stored(self, file: str, key: str, first: int, end: int) -> Tensor:
        try:
            if file not in self._files:
                self._files[file] = self._open.enter_context(safe_open(self.path / file, "pt"))
            stored: Tensor = self._files[file].get_slice(key)[first:end]
        except SafetensorError as error:
            raise TrainerError(f"{self.path / file} is damaged: {error}") from error
        return stored


def last_good(folder: Path, before: int) -> Path | None:
    """The newest checkpoint before that step that is whole, every byte of it."""
    for step, path in reversed(saved(folder).items()):
        if step < before:
            try:
                Checkpoint(path).verify()
            except TrainerError:
                continue
            return path
    return None


def _read_index(path: Path) -> Record:
    if not path.is_file():
        raise TrainerError(f"{path} does not exist: expected the folder of a checkpoint, as step-000100")
    try:
        index = json.loads(path.read_text())
    except ValueError as error:
        raise TrainerError(f"{path} is damaged: {error}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise TrainerError(f"{path} is none of this program's: expected format {FORMAT!r}")
    if index.get("version") != VERSION:
        raise TrainerError(f"{path} has version {index.get('version')}: expected {VERSION}")
    sha256 = index.pop("sha256", None)
    if sha256 != _index_sha256(index):
        raise TrainerError(f"{path} is damaged: expected sha256 {sha256}, got {_index_sha256(index)}")
    return {**index, "sha256": sha256}


def _index_sha256(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _check_files(folder: Path, files: Mapping[str, Record], otherwise: str) -> None:
    for name, expected in files.items():
        path = folder / Path(name).name
        if not path.is_file():
            raise TrainerError(f"{path} is missing: {otherwise}")
        if path.stat().st_size != expected["bytes"]:
            raise TrainerError(
                f"{path} is damaged: expected {expected['bytes']} bytes, got {path.stat().st_size}"
            )


def _check_cover(name: str, tensor: Record, path: Path) -> None:
    end = 0
    for offset, count, _ in tensor["slices"]:
        if offset != end:
            raise TrainerError(f"{path}: {name} has a slice at {offset}, expected one at {end}")
        end += count
    if end != math.prod(tensor["shape"]):
        raise TrainerError(f"{path}: {name} has {end} elements, expected {math.prod(tensor['shape'])}")


def _key(name: str, offset: int, count: int) -> str:
    return f"{name}[{offset}:{offset + count}]"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise TrainerError(f"a checkpoint holds {name}, which is no dtype of this torch")
    return dtype


def _finite(data: Tensor) -> bool:
    if not data.is_floating_point() or not data.numel():
        return True
    return math.isfinite(torch.linalg.vector_norm(data, math.inf).item())
