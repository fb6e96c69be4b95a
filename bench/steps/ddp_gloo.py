"""torch's DistributedDataParallel on gloo. Options: `view`, gradients as views of the buckets;
`zeroredundancy`, the optimizer's state sharded by torch's ZeroRedundancyOptimizer."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn.parallel import DistributedDataParallel

from bench import gloo
from bench.errors import BenchError
from bench.ranks import Ranks
from bench.steps import STEPS, Step
from bench.workloads import Workload

OPTIONS = {"view", "zeroredundancy"}


@STEPS.register("ddp-gloo")
class DdpGloo(Step):
    def __init__(self, options: Sequence[str], workload: Workload, ranks: Ranks) -> None:
        if not OPTIONS.issuperset(options):
            raise BenchError(f"ddp-gloo: expected {' or '.join(sorted(OPTIONS))}, got {' '.join(options)}")
        super().__init__((), workload, ranks)
        gloo.start(ranks)
        self.model = DistributedDataParallel(self.model, gradient_as_bucket_view="view" in options)
        if "zeroredundancy" in options:
            from torch.distributed.optim import ZeroRedundancyOptimizer  # warns; only where it is wanted

            make, settings = workload.optimizer_class
            self.optimizer = ZeroRedundancyOptimizer(self.model.parameters(), make, **settings)

    def close(self) -> None:
        gloo.stop()
