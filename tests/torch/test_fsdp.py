"""Communication memory for FSDP2: what is given back is given again, and who is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import pycomm

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402

from pycomm.torch.fsdp import Pool, fsdp_memory  # noqa: E402


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("pycomm", rank=0, world_size=1, store=dist.FileStore(str(tmp_path / "store"), 1))
    yield
    dist.destroy_process_group()


def test_memory_comes_back_when_the_last_tensor_in_it_is_gone() -> None:
    pool = Pool(pycomm.init())
    first = pool.take(6, torch.float32)
    view, where = first.view(2, 3)[1], first.data_ptr()
    del first
    assert pool.take(6, torch.float32).data_ptr() != where
    del view
    assert pool.take(3, torch.float64).data_ptr() == where  # by bytes
    assert pool.take(0, torch.float32).shape == (0,)


def test_two_tensors_never_share_memory() -> None:
    pool = Pool(pycomm.init())
    held = [pool.take(5, torch.float32).fill_(k) for k in range(4)]
    assert [tensor.tolist() for tensor in held] == [[k] * 5 for k in range(4)]


def test_a_model_that_is_not_sharded_is_refused(alone: None) -> None:
    with pytest.raises(pycomm.InvalidArgument, match=r"no module of the Linear .* expected fully_shard"):
        fsdp_memory(nn.Linear(2, 2))


def test_a_group_of_another_backend_is_refused() -> None:
    with pytest.raises(pycomm.InvalidArgument, match="the group is a NoneType; expected backend 'pycomm'"):
        fsdp_memory(nn.Linear(2, 2))
