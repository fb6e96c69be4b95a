"""torch's FSDP2 (`fully_shard`): parameters, gradients and optimizer state sharded by block. `fsdp2-gloo` and
`fsdp2-pycomm`, whose option `memory` is pycomm.torch.fsdp_memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from bench import gloo
from bench.errors import BenchError
from bench.ranks import Ranks
from bench.steps import STEPS, Step
from bench.workloads import Workload


class Fsdp2(Step):
    def __init__(self, group: Any, workload: Workload, ranks: Ranks) -> None:
        from torch.distributed.device_mesh import DeviceMesh  # slow to load
        from torch.distributed.fsdp import fully_shard

        super().__init__((), workload, ranks)
        mesh = DeviceMesh.from_group(group, "cpu")
        for child in self.model.children():
            for block in child if isinstance(child, nn.Sequential) else ():
                fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.optimizer = workload.optimizer(self.model.parameters())

    def parameters(self) -> Iterable[Tensor]:
        return [parameter.full_tensor() for parameter in self.model.parameters()]  # type: ignore[attr-defined]

    def close(self) -> None:
        gloo.stop()


@STEPS.register("fsdp2-gloo")
def on_gloo(options: Sequence[str], workload: Workload, ranks: Ranks) -> Step:
    if options:
        raise BenchError(f"fsdp2-gloo takes no options, got {' '.join(options)}")
    return Fsdp2(gloo.start(ranks).group.WORLD, workload, ranks)


@STEPS.register("fsdp2-pycomm")
def on_pycomm(options: Sequence[str], workload: Workload, ranks: Ranks) -> Step:
    import pycomm.torch

    if not {"memory"}.issuperset(options):
        raise BenchError(f"fsdp2-pycomm: expected memory or nothing, got {' '.join(options)}")
    group = gloo.start(ranks).new_group(backend="pycomm")
    step = Fsdp2(group, workload, ranks)
    if options:
        pycomm.torch.fsdp_memory(step.model, group)
    return step
