"""no_sync in loops of one's own, where gradients are sharded and where the graph is the same at each step."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from one_process import COUNT, Branches, backward, batch, part, summed_loss
from torch import Tensor, nn

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import DataParallel, TrainerError, Zero
from trainer.accumulation import PartSums

KINDS: dict[str, Callable] = {
    "data_parallel": lambda *parts, **options: DataParallel(*parts, overlap="on", **options),
    "zero1": lambda *parts, **options: Zero(*parts, overlap="on", **options),
    "zero2": lambda *parts, **options: Zero(*parts, stage=2, **options),
    "zero3": lambda *parts, **options: Zero(*parts, stage=3, **options),
    "zero2, one buffer": lambda *parts, **options: Zero(*parts, stage=2, pool=1, **options),
}
MICRO = 3


def wide_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 67), nn.Tanh(), nn.Linear(67, 3))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_are_one_batch_at_every_step_of_a_static_graph(kind: str, size: int) -> None:
    """With overlap on. DistributedDataParallel(static_graph=True) stops reducing from the second step on
    (pytorch#143580)."""
    original = wide_model()

    def rank(comm: Communicator) -> dict[str, Tensor]:
        model = copy.deepcopy(original)
        stepping = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        options = {"loss_reduction": "sum", "global_count": MICRO * COUNT, "bucket_bytes": 1000}
        with KINDS[kind](model, comm, stepping, **options) as parallel:
            for step in range(4):
                stepping.zero_grad()
                for seed in range(MICRO - 1):
                    with parallel.no_sync():
                        backward(model, comm, 10 * step + seed)
                backward(model, comm, 10 * step + MICRO - 1)
                parallel.clip_grad_norm_(1.0)
                stepping.step()
        return model.state_dict()

    model = copy.deepcopy(original)
    stepping = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for step in range(4):
        stepping.zero_grad()
        for seed in range(MICRO):
            (summed_loss(model, *batch(10 * step + seed)) / (MICRO * COUNT)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        stepping.step()
    for got in run_threads(size, rank):
        torch.testing.assert_close(got, model.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_used_in_one_micro_batch_of_one_rank_is_stepped(kind: str) -> None:
    """And one that none used is left alone, by weight decay too."""
    torch.manual_seed(2)
    original = Branches()
    micro = [((0,), (0, 1)), ((0,), (0,))]  # by micro-batch and rank

    def rank(comm: Communicator) -> dict[str, Tensor]:
        model = copy.deepcopy(original)
        stepping = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.5)
        options = {"loss_reduction": "sum", "global_count": 2 * COUNT, "bucket_bytes": 1}
        with KINDS[kind](model, comm, stepping, **options) as parallel:
            with parallel.no_sync():
                model(part(batch()[0], comm), micro[0][comm.rank]).sum().backward()
            model(part(batch(1)[0], comm), micro[1][comm.rank]).sum().backward()
            stepping.step()
        return model.state_dict()

    model = copy.deepcopy(original)
    for seed, taken in enumerate(micro):
        for rank_, branches in enumerate(taken):
            inputs = batch(seed)[0].tensor_split(2)[rank_]
            (model(inputs, branches).sum() / (2 * COUNT)).backward()
    torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.5).step()
    assert torch.equal(model.branches[2].weight, original.branches[2].weight)
    for got in run_threads(2, rank):
        torch.testing.assert_close(got, model.state_dict(), rtol=1e-5, atol=1e-6)


def test_stage_2_never_holds_whole_gradients_between_micro_batches() -> None:
    def rank(comm: Communicator) -> tuple[bool, int, int]:
        model = wide_model()
        stepping = torch.optim.SGD(model.parameters(), 0.1)
        parallel = Zero(
            model, comm, stepping, stage=2, pool=1, bucket_bytes=1, global_count=1, loss_reduction="sum"
        )
        with parallel:
            before = parallel.memory().gradients
            with parallel.no_sync():
                backward(model, comm)
            held = parallel.memory().gradients
            whole = any(parameter.grad is not None for parameter in model.parameters())
            backward(model, comm, 1)
            stepping.step()
            return whole, held - before, parallel.memory().gradients - before

    # 402 + 67 + 201 + 3 elements, each parameter padded until both halves begin at a multiple of 64.
    assert run_threads(2, rank) == [(False, 4 * (512 + 128 + 256 + 128) // 2, 0)] * 2


def test_two_backwards_in_one_no_sync_of_stage_2_are_an_error() -> None:
    def rank(comm: Communicator) -> None:
        model = wide_model()
        stepping = torch.optim.SGD(model.parameters(), 0.1)
        parallel = Zero(model, comm, stepping, stage=2, loss_reduction="sum", global_count=COUNT)
        with pytest.raises(TrainerError, match="under stage 2 each in one of its own"), parallel.no_sync():
            backward(model, comm)
            backward(model, comm)

    run_threads(1, rank)


def test_an_exception_in_no_sync_of_stage_2_is_what_is_raised() -> None:
    def rank(comm: Communicator) -> None:
        model = wide_model()
        parallel = Zero(model, comm, torch.optim.SGD(model.parameters(), 0.1), stage=2)
        with pytest.raises(KeyError), parallel.no_sync():
            raise KeyError

    run_threads(2, rank)


def test_sums_of_16_bit_parts_are_rounded_once() -> None:
    part = torch.tensor([256.0], dtype=torch.bfloat16)
    sums = PartSums([part], 1)
    sums.add([True])
    for _ in range(3):
        part.fill_(1)  # 256 + 1 is 256 in bfloat16
        sums.add([False])
    part.fill_(1)
    assert sums.complete([False]) == [True]
    assert part.item() == 260
    assert sums.complete([False]) == [False] and sums.nbytes == 0
