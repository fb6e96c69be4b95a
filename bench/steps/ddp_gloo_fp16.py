"""ddp-gloo whose gradients travel in 16 bits, by torch's own communication hook: the peer of `pycomm+fp16`.
Options are ddp-gloo's."""

from __future__ import annotations

from collections.abc import Sequence

from bench.ranks import Ranks
from bench.steps import STEPS
from bench.steps.ddp_gloo import DdpGloo
from bench.workloads import Workload


@STEPS.register("ddp-gloo-fp16")
class DdpGlooFp16(DdpGloo):
    def __init__(self, options: Sequence[str], workload: Workload, ranks: Ranks) -> None:
        super().__init__(options, workload, ranks)
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

        self.model.register_comm_hook(None, fp16_compress_hook)  # type: ignore[operator]
