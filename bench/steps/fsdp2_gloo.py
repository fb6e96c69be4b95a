"""torch's FSDP2 (`fully_shard`) on gloo: parameters, gradients and optimizer state sharded by block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from bench import gloo
from bench.ranks import Ranks
from bench.steps import STEPS, Step
from bench.workloads import Workload


@STEPS.register("fsdp2-gloo")
class Fsdp2Gloo(Step):
    def __init__(self, options: Sequence[str], workload: Workload, ranks: Ranks) -> None:
        from torch.distributed.device_mesh import init_device_mesh  # slow to load
        from torch.distributed.fsdp import fully_shard

        super().__init__(options, workload, ranks)
        gloo.start(ranks)
        mesh = init_device_mesh("cpu", (ranks.size,))
        for child in self.model.children():
            for block in child if isinstance(child, nn.Sequential) else ():
                fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.optimizer = workload.optimizer(self.model.parameters())

    def parameters(self) -> Iterable[Tensor]:
        return [parameter.full_tensor() for parameter in self.model.parameters()]  # type: ignore[attr-defined]

    def close(self) -> None:
        gloo.stop()
