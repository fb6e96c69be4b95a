"""Ways to make a training step, each registered by its own file in this folder.

    @STEPS.register("mine")
    class Mine(Step): ...

The constructor gets the options of `name:option+option`, the workload and the ranks, and makes its own copy
of the model and its own optimizer; calling the step then trains that copy once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from torch import Tensor, nn

from bench.errors import BenchError
from bench.ranks import Ranks
from bench.workloads import Workload
from trainer.registry import Registry


class Step:
    """One training step on a copy of the model: gradients dropped, forward, backward, update. Collective."""

    synchronized: ClassVar[bool] = True  # all ranks' copies stay equal, bit by bit

    def __init__(self, options: Sequence[str], workload: Workload, ranks: Ranks) -> None:
        if options:
            raise BenchError(f"{type(self).__name__} takes no options, got {' '.join(options)}")
        self.workload = workload
        self.model: nn.Module = workload.model()
        self.optimizer = workload.optimizer(self.model.parameters())

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.workload.loss(self.model).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def parameters(self) -> Iterable[Tensor]:
        """Whole parameters, as after the last step. Collective, blocks."""
        return self.model.parameters()

    def close(self) -> None:
        """Gives back what the constructor took."""


STEPS: Registry[Step] = Registry("training step", "bench.steps")
