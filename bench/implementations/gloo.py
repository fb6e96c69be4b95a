"""gloo through torch.distributed, on tensors over the same memory as NumPy's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from bench import gloo
from bench.implementations import IMPLEMENTATIONS, Call, Implementation
from bench.operations import ROOT, Array, Case
from bench.ranks import Ranks


@IMPLEMENTATIONS.register("gloo")
class Gloo(Implementation):
    def __init__(self, options: Sequence[str], ranks: Ranks) -> None:
        super().__init__(options, ranks)
        self._dist = gloo.start(ranks)
        reductions = self._dist.ReduceOp
        self._reductions = {
            "sum": reductions.SUM,
            "prod": reductions.PRODUCT,
            "min": reductions.MIN,
            "max": reductions.MAX,
        }

    def all_reduce(self, case: Case) -> Call:
        return partial(self._dist.all_reduce, _tensor(case.input), self._reductions[case.redop])

    def reduce_scatter(self, case: Case) -> Call:
        scatter = _renamed(self._dist, "reduce_scatter_single", "reduce_scatter_tensor")
        return partial(scatter, _tensor(case.output), _tensor(case.input), self._reductions[case.redop])

    def all_gather(self, case: Case) -> Call:
        gather = _renamed(self._dist, "all_gather_single", "all_gather_into_tensor")
        return partial(gather, _tensor(case.output), _tensor(case.input))

    def broadcast(self, case: Case) -> Call:
        return partial(self._dist.broadcast, _tensor(case.input), ROOT)

    def reduce(self, case: Case) -> Call:
        return partial(self._dist.reduce, _tensor(case.input), ROOT, self._reductions[case.redop])

    def gather(self, case: Case) -> Call:
        parts = list(_tensor(case.output).chunk(case.size)) if case.rank == ROOT else None
        return partial(self._dist.gather, _tensor(case.input), parts, ROOT)

    def scatter(self, case: Case) -> Call:
        parts = list(_tensor(case.input).chunk(case.size)) if case.rank == ROOT else None
        return partial(self._dist.scatter, _tensor(case.output), parts, ROOT)

    def all_to_all(self, case: Case) -> Call:
        return partial(self._dist.all_to_all_single, _tensor(case.output), _tensor(case.input))

    def barrier(self, case: Case) -> Call:
        return partial(self._dist.barrier)

    def close(self) -> None:
        gloo.stop()


def _tensor(array: Array) -> Any:
    import torch

    return torch.from_numpy(array)


def _renamed(module: Any, new: str, old: str) -> Any:
    """A function that torch gave a new name: the old one only warns, or is all there is."""
    return getattr(module, new, None) or getattr(module, old)
