"""The trainer's Zero, stages 1 to 3. Options: a codec; `overlap=on`, `overlap=off` or `overlap=auto`; of
stages 1 and 2 `share`, one copy of the parameters for all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from torch import Tensor

from bench.options import parallel_arguments
from bench.ranks import Ranks
from bench.steps import STEPS, Step
from bench.workloads import Workload
from trainer import Zero


@STEPS.register("zero1")
class Zero1(Step):
    stage: ClassVar[int] = 1

    def __init__(self, options: Sequence[str], workload: Workload, ranks: Ranks) -> None:
        others = [option for option in options if option != "share"]
        chosen = parallel_arguments(f"zero{self.stage}", others) | {"share_params": "share" in options}
        super().__init__((), workload, ranks)
        self._parallel = Zero(
            self.model, ranks.comm, self.optimizer, stage=self.stage, loss_reduction="mean", **chosen
        )

    def parameters(self) -> Iterable[Tensor]:
        named = sorted(self.model.named_parameters())
        return (parameter for _, parameter in self._parallel.whole(named))

    def close(self) -> None:
        self._parallel.close()


@STEPS.register("zero2")
class Zero2(Zero1):
    stage = 2


@STEPS.register("zero3")
class Zero3(Zero1):
    stage = 3
