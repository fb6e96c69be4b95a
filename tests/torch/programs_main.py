"""Programs of torch.distributed's, as users write them. Run on one backend after the other; prints a line of
numbers for each, which must not depend on the backend."""

from __future__ import annotations

import datetime
import json
import sys
import tempfile
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import pycomm.torch

try:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
except ImportError:  # before torch 2.6
    from torch.distributed._composable.fsdp import fully_shard
    from torch.distributed._tensor import Replicate, Shard, distribute_tensor

Result = Iterable[Tensor]


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))


def batch(step: int, rank: int) -> Tensor:
    return torch.randn(8, 16, generator=torch.Generator().manual_seed(100 * step + rank))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> None:
    for step in range(3):
        optimizer.zero_grad()
        model(batch(step, rank)).square().mean().backward()
        optimizer.step()


def ddp() -> Result:
    model = DistributedDataParallel(layers())
    train(model, torch.optim.SGD(model.parameters(), 0.1), dist.get_rank())
    return model.parameters()


def ddp_fp16_hook() -> Result:
    model = DistributedDataParallel(layers())
    model.register_comm_hook(None, fp16_compress_hook)
    train(model, torch.optim.SGD(model.parameters(), 0.1), dist.get_rank())
    return model.parameters()


def ddp_power_sgd_hook() -> Result:
    model = DistributedDataParallel(layers())
    state = PowerSGDState(None, start_powerSGD_iter=2, use_error_feedback=False, warm_start=False)
    model.register_comm_hook(state, powerSGD_hook)
    train(model, torch.optim.SGD(model.parameters(), 0.1), dist.get_rank())
    return model.parameters()


def zero_redundancy() -> Result:
    model = DistributedDataParallel(layers())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=0.01)
    train(model, optimizer, dist.get_rank())
    return model.parameters()


def fsdp2() -> Result:
    return train_fsdp2(lambda model: None)


def train_fsdp2(prepare: Callable[[nn.Module], None]) -> Result:
    model, mesh = layers(), init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    prepare(model)
    train(model, torch.optim.Adam(model.parameters(), 0.01), dist.get_rank())
    return [p.full_tensor() for p in model.parameters()]


def hybrid_fsdp2() -> Result:
    if dist.get_world_size() != 4:
        return []
    model, mesh = layers(), init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    fully_shard(model, mesh=mesh)
    train(model, torch.optim.Adam(model.parameters(), 0.01), dist.get_rank())
    return [p.full_tensor() for p in model.parameters()]


def tensor_parallel() -> Result:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = parallelize_module(layers(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    train(model, torch.optim.SGD(model.parameters(), 0.1), 0)
    return [p.full_tensor() for p in model.parameters()]


def dtensor() -> Result:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(1)
    rows = distribute_tensor(torch.randn(7, 5), mesh, [Shard(0)])
    columns = rows.redistribute(mesh, [Shard(1)])
    product = columns @ columns.redistribute(mesh, [Replicate()]).t()
    return [product.full_tensor(), rows.sum().full_tensor()]


def checkpoint() -> Result:
    model, mesh = layers(), init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model, mesh=mesh)
    folder = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(folder)
    dcp.save(get_model_state_dict(model), checkpoint_id=folder[0])
    dcp.async_save({"numbers": torch.ones(3)}, checkpoint_id=f"{folder[0]}/numbers").result()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    state = get_model_state_dict(model)
    dcp.load(state, checkpoint_id=folder[0])
    set_model_state_dict(model, state)
    return [p.full_tensor() for p in model.parameters()]


def pipeline() -> Result:
    size, rank = dist.get_world_size(), dist.get_rank()
    torch.manual_seed(0)
    stages = [nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(size)]
    stage = PipelineStage(stages[rank], rank, size, torch.device("cpu"))
    schedule = Schedule1F1B(stage, 8, loss_fn=nn.MSELoss())
    losses: list[Tensor] = []
    last = rank == size - 1
    given = [batch(0, 0)] if rank == 0 else []
    schedule.step(*given, **({"target": torch.zeros(8, 16), "losses": losses} if last else {}))
    told = torch.stack(losses).detach() if last else torch.zeros(8)
    dist.broadcast(told, size - 1)
    return [told]


def objects() -> Result:
    size, rank = dist.get_world_size(), dist.get_rank()
    everyone: list[object] = [None] * size
    dist.all_gather_object(everyone, ("x", rank))
    mine: list[object] = [None]
    dist.scatter_object_list(mine, [f"for {r}" for r in range(size)] if rank == 0 else None)
    gathered: list[object] | None = [None] * size if rank == 0 else None
    dist.gather_object(mine[0], gathered)
    assert everyone[-1] == ("x", size - 1)
    assert rank or gathered == [f"for {r}" for r in range(size)]
    return []


def hook_of_ours() -> Result:
    """Only on backend "pycomm", where it must give what plain DDP gives there."""
    model = DistributedDataParallel(layers())
    if dist.get_backend() == "pycomm":
        model.register_comm_hook(pycomm.torch.DdpState(), pycomm.torch.ddp_hook)
    train(model, torch.optim.SGD(model.parameters(), 0.1), dist.get_rank())
    return model.parameters()


def fsdp_memory_of_ours() -> Result:
    """Likewise: what plain FSDP2 gives."""
    return train_fsdp2(pycomm.torch.fsdp_memory if dist.get_backend() == "pycomm" else lambda model: None)


PROGRAMS: list[Callable[[], Result]] = [
    ddp,
    ddp_fp16_hook,
    ddp_power_sgd_hook,
    zero_redundancy,
    fsdp2,
    hybrid_fsdp2,
    tensor_parallel,
    dtensor,
    checkpoint,
    pipeline,
    objects,
    hook_of_ours,
    fsdp_memory_of_ours,
]

if __name__ == "__main__":
    world = pycomm.init()
    for backend in sys.argv[1:]:
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=60))
        for program in PROGRAMS:
            numbers = [value for tensor in program() for value in tensor.detach().double().flatten().tolist()]
            if dist.get_rank() == 0:
                print(json.dumps([backend, program.__name__, numbers]), flush=True)
        dist.destroy_process_group()
        world.barrier()  # torch's store is gone, and none connects to it for the next group
