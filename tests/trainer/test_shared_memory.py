"""Memory that ranks share: owners write when all have finished backward, all read when all have written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer.errors import TrainerError
from trainer.shared_memory import _map, check_shareable, shared_zeros


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 5000])
def test_what_one_rank_writes_the_others_read(count: int, dtype: torch.dtype) -> None:
    def rank(comm: Communicator) -> list[float]:
        memory = shared_zeros(comm, count, dtype)
        assert memory.dtype == dtype and memory.shape == (count,) and not memory.any()
        comm.barrier()
        memory[comm.rank :: comm.size] = comm.rank + 1
        comm.barrier()
        return memory.tolist()

    assert run_threads(3, rank) == [[float(i % 3 + 1) for i in range(count)]] * 3


def test_another_process_of_that_number_is_not_believed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(bytes(8 + 16))
    with pytest.raises(TrainerError, match="is not rank 0's memory"):
        _map(other, 8, b"0123456789abcdef")
    with pytest.raises(TrainerError, match="cannot map rank 0's memory"):
        _map(tmp_path / "none", 8, b"0123456789abcdef")


def test_ranks_of_several_nodes_are_refused() -> None:
    class Apart:
        size, local_size = 4, 2

    with pytest.raises(TrainerError, match="expected all 4 ranks on one node, got 2"):
        check_shareable(Apart())


PROGRAM = """
import time, torch, pycomm
from trainer import Zero
from trainer.state import parameters_sha256

class Late(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, gradient):
        time.sleep(0.2)
        return gradient

def trained(late):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 300), torch.nn.Tanh(), torch.nn.Linear(300, 5))
    optimizer = torch.optim.Adam(model.parameters(), 0.01, fused=True)
    x = torch.randn(12, 64).tensor_split(comm.size)[comm.rank]
    with Zero(model, comm, optimizer, loss_reduction="sum", global_count=12, share_params=True,
              bucket_bytes=10000, overlap="on"):
        for step in range(3):
            optimizer.zero_grad()
            hidden = model[1](model[0](x))
            model[2](Late.apply(hidden) if late else hidden).square().sum().backward()
            optimizer.step()
    return parameters_sha256(model)

torch.set_num_threads(1)
comm = pycomm.init()
assert trained(late=False) == trained(late=comm.rank == 1)
"""


def test_a_rank_that_is_late_in_backward_changes_no_bit(environment: dict[str, str], tmp_path: Path) -> None:
    """Over processes. Had the other one stepped early, the late one would go back through other weights."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "pycomm.launch", "-n", "2", str(program)]
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert finished.returncode == 0, finished.stderr
