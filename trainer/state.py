"""A model's state across ranks: rank 0's copy for everyone, and hashes that say whether copies are equal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from pycomm import Communicator
from trainer.data import Dataset
from trainer.errors import CollectiveError
from trainer.reading.memory import readable


def broadcast(tensors: Iterable[Tensor], comm: Communicator) -> None:
    """Overwrites each tensor with rank 0's; blocks. Collective: shapes and dtypes must agree on all ranks."""
    if comm.size == 1:
        return
    for tensor in tensors:
        target = tensor.detach()
        dense = target.contiguous()
        comm.broadcast(dense.reshape(-1).view(torch.uint8), root=0)  # bytes: of any dtype
        if dense.data_ptr() != target.data_ptr():
            target.copy_(dense)


def parameters_sha256(model: nn.Module) -> str:
    """Hash of all parameters in name order: names, dtypes, shapes and bits."""
    return tensors_sha256(dict(model.named_parameters()))


def state_sha256(model: nn.Module) -> str:
    """The same with the buffers."""
    return tensors_sha256(dict([*model.named_parameters(), *model.named_buffers()]))


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """The same of tensors by name."""
    return hash_of(sorted(tensors.items()))


def data_sha256(dataset: Dataset) -> str:
    """Hash of all splits: dtypes, shapes and bits of what is in memory, and of some samples of what is
    not."""
    return hash_of(
        (f"{name}.{index}", tensor)
        for name, split in dataset.splits().items()
        for index, tensor in enumerate(readable(split).identity())
    )


def check_equal(sha256: str, comm: Communicator, what: str) -> None:
    """Collective: raises CollectiveError, on every rank, that names the ranks whose hash is not rank 0's."""
    different = ranks_that_differ(bytes.fromhex(sha256), comm)
    if different:
        ranks = ", ".join(map(str, different))
        raise CollectiveError(
            f"{what} differ from rank 0's on rank {ranks} (of {comm.size}); this rank has {sha256}"
        )


def ranks_that_differ(digest: bytes, comm: Communicator) -> list[int]:
    """The ranks whose digest is not rank 0's. Collective, blocks; all ranks get the same list."""
    mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
    hashes = comm.all_gather(mine).view(comm.size, -1)
    return [rank for rank in range(comm.size) if not torch.equal(hashes[rank], hashes[0])]


def bits(tensor: Tensor) -> memoryview:
    """The tensor's bytes, for a hash."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


def hash_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Hash of names, dtypes, shapes and bits, in that order; each tensor is looked at once."""
    sha256 = hashlib.sha256()
    for name, tensor in tensors:
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha256.update(bits(tensor))
    return sha256.hexdigest()
