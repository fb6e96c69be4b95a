"""pycomm's collectives on NumPy arrays made by `comm.empty`. Options: an algorithm and a codec, named as in
`pycomm.info()` or registered by a plug-in, an order (`rank`, `tree`), `plain` for ordinary memory, and
`persistent` for operations that are prepared once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pycomm
from bench.errors import BenchError
from bench.implementations import IMPLEMENTATIONS, Call, Implementation, UnsupportedError
from bench.operations import ROOT, Array, Case
from bench.ranks import Ranks
from pycomm.plans import COLLECTIVES, is_registered


@IMPLEMENTATIONS.register("pycomm")
class Pycomm(Implementation):
    def __init__(self, options: Sequence[str], ranks: Ranks) -> None:
        super().__init__((), ranks)
        self.comm = ranks.comm
        info = pycomm.info()
        own = {f"{of}:{name}" for of in COLLECTIVES for name in options if is_registered(of, name)}
        self._rows = set(info["algorithms"]) | own  # "operation:algorithm"
        self._options: dict[str, str] = {}
        algorithms = {row.split(":")[1] for row in self._rows}
        self._persistent = "persistent" in options
        self._plain = "plain" in options
        for option in options:
            if option in ("persistent", "plain"):
                continue
            kind = "codec" if option in info["codecs"] else "algorithm"
            kind = "order" if option in ("rank", "tree") else kind
            if kind == "algorithm" and option not in algorithms:
                known = f"algorithm ({', '.join(sorted(algorithms))}), order (rank, tree) or codec ("
                known += f"{', '.join(info['codecs'])})"
                raise BenchError(f"pycomm has no {option!r}; expected an {known}, or plain")
            if kind in self._options:
                raise BenchError(f"pycomm takes one {kind}, got {self._options[kind]} and {option}")
            self._options[kind] = option

    def empty(self, count: int, dtype: str) -> Array:
        return super().empty(count, dtype) if self._plain else self.comm.empty(count, dtype)

    def all_reduce(self, case: Case) -> Call:
        return self._call("all_reduce", case.input, case.redop, **self._reducing(case))

    def reduce_scatter(self, case: Case) -> Call:
        return self._call("reduce_scatter", case.input, case.redop, case.output, **self._reducing(case))

    def all_gather(self, case: Case) -> Call:
        return self._call("all_gather", case.input, case.output, **self._moving(case))

    def broadcast(self, case: Case) -> Call:
        return self._call("broadcast", case.input, ROOT, **self._moving(case))

    def reduce(self, case: Case) -> Call:
        return self._call("reduce", case.input, ROOT, case.redop, **self._reducing(case))

    def gather(self, case: Case) -> Call:
        return self._call("gather", case.input, ROOT, case.output, **self._moving(case))

    def scatter(self, case: Case) -> Call:
        return self._call("scatter", case.input, ROOT, case.output, **self._moving(case))

    def all_to_all(self, case: Case) -> Call:
        return self._call("all_to_all", case.input, case.output, **self._moving(case))

    def barrier(self, case: Case) -> Call:
        if self._options:
            raise UnsupportedError("chooses no algorithm or codec for barrier")
        return self._call("barrier")

    def _call(self, name: str, *arguments: Any, **options: Any) -> Call:
        if self._persistent:
            prepared: Call = getattr(self.comm, f"{name}_init")(*arguments, **options)
            return prepared
        return partial(getattr(self.comm, name), *arguments, **options)

    def _reducing(self, case: Case) -> dict[str, Any]:
        row = f"{case.operation.name}:{self._options.get('algorithm')}"
        if "algorithm" in self._options and row not in self._rows:
            raise UnsupportedError(f"has no {row}")
        dtype = case.input.dtype.name
        if self._options.get("codec", "none") != "none" and dtype not in ("float32", "float64"):
            raise UnsupportedError(f"has no codec for {dtype}")
        return dict(self._options)

    def _moving(self, case: Case) -> dict[str, Any]:
        for kind in ("codec", "order"):
            if kind in self._options:
                raise UnsupportedError(f"has no {kind} for {case.operation.name}")
        return self._reducing(case)
