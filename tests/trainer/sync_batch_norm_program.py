"""A loop with everything that reduces besides the gradients: BatchNorm over ranks, a loss scale, uneven data.

test_sync_batch_norm.py starts it under a launcher, where layers and buckets reduce at the same time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pycomm
from trainer import DataParallel, LossScaler, Zero, convert_sync_batchnorm, uneven


def trained(comm: pycomm.Communicator, make: type[DataParallel] | type[Zero]) -> float:
    """The sum of all parameters after some steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    convert_sync_batchnorm(model, comm)
    scaler = LossScaler(comm)
    with make(model, comm, optimizer, loss_reduction="sum", overlap="on", bucket_bytes=1000) as parallel:
        for batch, global_count in uneven(batches(comm), comm):
            assert batch is not None
            parallel.global_count = global_count
            optimizer.zero_grad()
            scaler.scaled((model(batch[0]) - batch[1]).square().sum()).backward()
            parallel.synchronize()
            if scaler.unscale(parallel, model):
                parallel.clip_grad_norm_(1.0)
                optimizer.step()
    return sum(float(parameter.double().sum()) for parameter in model.parameters())


def batches(comm: pycomm.Communicator) -> list[tuple[Tensor, Tensor]]:
    """This rank's part of each of six batches of eight."""
    random = torch.Generator().manual_seed(7)
    whole = [(torch.randn(8, 6, generator=random), torch.randn(8, 3, generator=random)) for _ in range(6)]
    return [(x.tensor_split(comm.size)[comm.rank], y.tensor_split(comm.size)[comm.rank]) for x, y in whole]


if __name__ == "__main__":
    torch.set_num_threads(1)
    world = pycomm.init()
    sums = [trained(world, make) for make in (DataParallel, Zero)]
    if world.rank == 0:
        print(*sums)
