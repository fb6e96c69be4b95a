from __future__ import annotations

import pytest
import torch

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer.errors import TrainerError
from trainer.state import broadcast, check_equal, parameters_sha256, state_sha256


def test_broadcast_gives_everyone_the_tensors_of_rank_0() -> None:
    def rank(comm: Communicator) -> list[torch.Tensor]:
        mine = comm.rank + 1
        tensors = [
            torch.full((3, 4), float(mine)).t(),
            torch.full((), mine, dtype=torch.int64),
            torch.full((5,), mine == 1),
            torch.full((6,), float(mine), dtype=torch.bfloat16),
            torch.full((2,), float(mine), dtype=torch.complex64),
            torch.full((), mine, dtype=torch.int16),
            torch.empty(0),
            torch.nn.Parameter(torch.full((2,), float(mine))),
        ]
        broadcast(tensors, comm)
        return tensors

    for tensors in run_threads(3, rank):
        assert all(bool((tensor == 1).all()) for tensor in tensors)


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_that_differs_is_named_on_every_rank(size: int) -> None:
    def rank(comm: Communicator) -> str:
        model = torch.nn.Linear(2, 2)
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.constant_(model.bias, 1.0 if comm.rank == size - 1 else 0.0)
        with pytest.raises(TrainerError) as caught:
            check_equal(parameters_sha256(model), comm, "the parameters")
        return str(caught.value)

    for message in run_threads(size, rank):
        assert f"the parameters differ from rank 0's on rank {size - 1} (of {size})" in message


def test_the_hash_sees_one_bit_a_name_a_shape_and_buffers() -> None:
    model = torch.nn.BatchNorm1d(4)
    parameters, state = parameters_sha256(model), state_sha256(model)
    model.running_mean[2] = 1e-45
    assert parameters_sha256(model) == parameters
    assert state_sha256(model) != state
    model.weight.data[0] = torch.nextafter(model.weight.data[0], torch.tensor(2.0))
    assert parameters_sha256(model) != parameters
    one, other = torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 2, bias=False)
    for layer in (one, other):
        torch.nn.init.zeros_(layer.weight)
    assert parameters_sha256(one) != parameters_sha256(other)
