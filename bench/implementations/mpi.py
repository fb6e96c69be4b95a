"""MPI's own collectives through mpi4py, on the MPI library that pycomm uses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from bench.implementations import IMPLEMENTATIONS, Call, Implementation, UnsupportedError
from bench.operations import ROOT, Case
from bench.ranks import Ranks


@IMPLEMENTATIONS.register("mpi")
class Mpi(Implementation):
    def __init__(self, options: Sequence[str], ranks: Ranks) -> None:
        super().__init__(options, ranks)
        mpi = ranks.mpi()
        self._in_place = mpi.IN_PLACE
        self._reductions = {"sum": mpi.SUM, "prod": mpi.PROD, "min": mpi.MIN, "max": mpi.MAX}
        self._datatype = mpi.Datatype
        self._world = mpi.COMM_WORLD.Dup()

    def bind(self, case: Case) -> Call:
        try:
            self._datatype.fromcode(case.input.dtype.char)
        except ValueError as error:
            raise UnsupportedError(f"has no {case.input.dtype.name}") from error
        return super().bind(case)

    def all_reduce(self, case: Case) -> Call:
        return partial(self._world.Allreduce, self._in_place, case.input, self._reductions[case.redop])

    def reduce_scatter(self, case: Case) -> Call:
        return partial(
            self._world.Reduce_scatter_block, case.input, case.output, self._reductions[case.redop]
        )

    def all_gather(self, case: Case) -> Call:
        return partial(self._world.Allgather, case.input, case.output)

    def broadcast(self, case: Case) -> Call:
        return partial(self._world.Bcast, case.input, ROOT)

    def reduce(self, case: Case) -> Call:
        mine = self._in_place if case.rank == ROOT else case.input
        result = case.output if case.rank == ROOT else None
        return partial(self._world.Reduce, mine, result, self._reductions[case.redop], ROOT)

    def gather(self, case: Case) -> Call:
        return partial(self._world.Gather, case.input, case.output if case.rank == ROOT else None, ROOT)

    def scatter(self, case: Case) -> Call:
        return partial(self._world.Scatter, case.input if case.rank == ROOT else None, case.output, ROOT)

    def all_to_all(self, case: Case) -> Call:
        return partial(self._world.Alltoall, case.input, case.output)

    def barrier(self, case: Case) -> Call:
        return partial(self._world.Barrier)

    def close(self) -> None:
        self._world.Free()
