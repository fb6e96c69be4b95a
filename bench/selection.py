"""`python -m bench selection`: the automatic choice of algorithm against every forced one.

At each size every algorithm that serves the operation is timed, and the call that names none, interleaved in
one run. `auto/best` is the time of that call over the fastest forced one's (1.00: the choice was the best
there is; a few per cent are the noise of timing), `predicted/auto` what `comm.explain` predicted over what it
took.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import pycomm
from bench import output
from bench.collectives import counts_of, parse_bytes, sizes_of
from bench.errors import BenchError
from bench.facts import facts
from bench.implementations.pycomm import Pycomm
from bench.operations import OPERATIONS, Case, Operation, operation
from bench.options import Parser, names
from bench.output import Row
from bench.ranks import Ranks
from bench.timing import Budget, Contender, measure, percentiles

AUTO = "auto"
WIDTHS = (15, 12, 10, 20, 20, 10, 11, 11, 15)
COLUMNS = ("operation", "size (B)", "auto (us)", "chosen", "best forced", "best (us)", "auto/best")
PREDICTED = ("predicted", "predicted/auto")


def main(arguments: Sequence[str]) -> int:
    """Runs, prints on rank 0. Collective."""
    ranks = Ranks(pycomm.init())
    parser = _parser(ranks.rank)
    options = parser.parse_args(arguments)
    with parser.reporting():
        operations = [_chosen_for(name) for name in names(options.op)]
        sizes = sizes_of(options.min, options.max, options.factor)
        budget = Budget(options.seconds, options.iters, options.warmup)
        output.check_writable(options.json, ranks)
    result = facts("selection", arguments, ranks) | {"rows": []}
    if ranks.rank == 0:
        print(f"# {ranks.size} ranks; pycomm over {ranks.comm.transport}; {options.dtype}")
        print(_line((*COLUMNS, *PREDICTED)), flush=True)
    for op in operations:
        for count in counts_of(op, sizes, np.dtype(options.dtype).itemsize, ranks.size):
            case = Case(op, count, options.dtype, "sum", ranks.rank, ranks.size, ranks.comm.empty)
            row = measure_choice(case, ranks, budget)
            result["rows"].append(row)
            if ranks.rank == 0:
                print(_shown(row), flush=True)
    if ranks.rank == 0:
        rows = result["rows"]
        worst = max(rows, key=lambda row: float(row["auto_to_best"]))
        off = max(rows, key=lambda row: float(abs(np.log(row["predicted_to_auto"]))))
        print(f"# largest auto/best {worst['auto_to_best']:.2f} ({worst['op']}, {worst['bytes']} bytes)")
        far = off["predicted_to_auto"]
        print(f"# predicted/auto furthest off {far:.2f} ({off['op']}, {off['bytes']} bytes)")
        output.write(options.json, result)
    return 0


def _chosen_for(name: str) -> Operation:
    op = operation(name)
    if not op.sized:
        raise BenchError(f"{name} moves no vector: its algorithm is not chosen by size")
    return op


def measure_choice(case: Case, ranks: Ranks, budget: Budget) -> Row:
    """One operation at one size. Collective."""
    op = case.operation.name
    explained = ranks.comm.explain(op, case.size_bytes, case.input.dtype.name)
    forced = [one.name for one in explained.candidates if not one.refused]
    contenders = [
        Contender(name, Pycomm([name] if name != AUTO else [], ranks).bind(case), case.rewrite)
        for name in (AUTO, *forced)
    ]
    for contender in contenders:
        contender.call()
    times = {name: percentiles(t, 1e-6)["p50"] for name, t in measure(contenders, ranks, budget).items()}
    best = min(forced, key=lambda name: times[name])
    return {
        "op": op,
        "bytes": case.size_bytes,
        "dtype": case.input.dtype.name,
        "chosen": explained.algorithm,
        "by": explained.by,
        "best": best,
        "time_us": times,
        "auto_to_best": times[AUTO] / times[best],
        "predicted_us": explained.predicted_s * 1e6,
        "predicted_to_auto": explained.predicted_s * 1e6 / times[AUTO],
    }


def _shown(row: Row) -> str:
    times = row["time_us"]
    cells = [row["op"], row["bytes"], f"{times[AUTO]:.1f}", row["chosen"], row["best"]]
    cells += [f"{times[row['best']]:.1f}", f"{row['auto_to_best']:.2f}"]
    return _line((*cells, f"{row['predicted_us']:.1f}", f"{row['predicted_to_auto']:.2f}"))


def _line(cells: Sequence[object]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(map(str, cells), WIDTHS, strict=True))


def _parser(rank: int) -> Parser:
    parser = Parser(rank, prog="python -m bench selection", description=__doc__)
    add = parser.add_argument
    kinds = [name for name, op in OPERATIONS.items() if op.sized]
    add("--op", default=",".join(kinds), help=f"operations by comma, of {', '.join(kinds)} (default: all)")
    add("--min", type=parse_bytes, default="8", metavar="BYTES", help="smallest size (default %(default)s)")
    add("--max", type=parse_bytes, default="64M", metavar="BYTES", help="largest size (default %(default)s)")
    add("--factor", type=int, default=8, help="from one size to the next (default %(default)s)")
    add("--dtype", default="float32", choices=("float32", "float64", "float16"))
    parser.add_budget(seconds=1.0, calls=1000)
    return parser
