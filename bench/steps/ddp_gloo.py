"""torch's DistributedDataParallel on gloo. Option: `view`, gradients as views of the buckets."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn.parallel import DistributedDataParallel

from bench import gloo
from bench.errors import BenchError
from bench.ranks import Ranks
from bench.steps import STEPS, Step
from bench.workloads import Workload


@STEPS.register("ddp-gloo")
class DdpGloo(Step):
    def __init__(self, options: Sequence[str], workload: Workload, ranks: Ranks) -> None:
        if list(options) not in ([], ["view"]):
            raise BenchError(f"ddp-gloo: expected no option or view, got {' '.join(options)}")
        super().__init__((), workload, ranks)
        gloo.start(ranks)
        self.model = DistributedDataParallel(self.model, gradient_as_bucket_view=bool(options))

    def close(self) -> None:
        gloo.stop()
