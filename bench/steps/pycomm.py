"""The trainer's DataParallel. Options: a codec, and `overlap=on`, `overlap=off` or `overlap=auto`."""

from __future__ import annotations

from collections.abc import Sequence

from bench.options import parallel_arguments
from bench.ranks import Ranks
from bench.steps import STEPS, Step
from bench.workloads import Workload
from trainer import DataParallel


@STEPS.register("pycomm")
class Pycomm(Step):
    def __init__(self, options: Sequence[str], workload: Workload, ranks: Ranks) -> None:
        chosen = parallel_arguments("pycomm", options)
        super().__init__((), workload, ranks)
        self._parallel = DataParallel(self.model, ranks.comm, self.optimizer, loss_reduction="mean", **chosen)

    def close(self) -> None:
        self._parallel.close()
