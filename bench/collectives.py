"""`python -m bench collectives`: the columns of nccl-tests for pycomm and its peers, interleaved in one run.

Sizes are those of the whole vector in bytes: what each rank reduces, or what an all_gather makes. Times are
medians over calls of the worst rank; algbw = size / time, busbw = algbw times the operation's factor,
GB = 1e9 bytes. `wrong` counts wrong elements over all ranks, in the first or the last call.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Sequence

import numpy as np

import pycomm
from bench import output
from bench.errors import BenchError
from bench.facts import facts
from bench.implementations import IMPLEMENTATIONS, Implementation, UnsupportedError
from bench.operations import DTYPES, OPERATIONS, REDUCTIONS, Case, Operation, operation
from bench.options import Parser, build, load, names
from bench.output import Row
from bench.ranks import Ranks, Times
from bench.roofline import NAME as ROOFLINE
from bench.roofline import Limit, limit
from bench.timing import Budget, Contender, measure, percentiles

Implementations = dict[str, Implementation]


def main(arguments: Sequence[str]) -> int:
    """Runs, prints on rank 0; returns 1 if any result was wrong. Collective."""
    ranks = Ranks(pycomm.init())
    parser = _parser(ranks.rank)
    options = parser.parse_args(arguments)
    with parser.reporting():
        load(options.plugin)
        operations = [operation(name) for name in names(options.op)]
        sizes = sizes_of(options.min, options.max, options.factor)
        budget = Budget(options.seconds, options.iters, options.warmup)
        output.check_writable(options.json, ranks)
        implementations = build(IMPLEMENTATIONS, options.impl, ranks)
    result = facts("collectives", arguments, ranks)
    result |= {"roofline": [], "rows": [], "missing": []}
    roof = limit(ranks)
    for op in operations:
        if ranks.rank == 0:
            output.print_head(f"{op.name}, {ranks.size} ranks; pycomm over {ranks.comm.transport}")
        usable, missing = usable_for(op, implementations, options.dtype, options.redop, ranks)
        result["missing"] += missing
        for lack in missing if ranks.rank == 0 else ():
            print(f"# {lack['impl']} {lack['reason']}")
        for count in counts_of(op, sizes, np.dtype(options.dtype).itemsize, ranks.size) if usable else ():
            contenders = usable, roof
            rows, rooflines = measure_count(
                op, count, *contenders, options.dtype, options.redop, ranks, budget
            )
            result["rows"] += rows
            result["roofline"] += rooflines
            if ranks.rank == 0:
                output.print_rows(rows, rooflines)
    for implementation in reversed(implementations.values()):
        implementation.close()
    roof.close()
    if ranks.rank == 0:
        output.write(options.json, result)
    return int(any(row["wrong"] for row in result["rows"]))


def usable_for(
    op: Operation, implementations: Implementations, dtype: str, redop: str, ranks: Ranks
) -> tuple[Implementations, list[Row]]:
    """The implementations that have the operation, and what the others lack."""
    usable, missing = {}, []
    for name, implementation in implementations.items():
        try:
            implementation.bind(Case(op, ranks.size, dtype, redop, ranks.rank, ranks.size))
            usable[name] = implementation
        except UnsupportedError as lack:
            missing.append({"op": op.name, "impl": name, "reason": str(lack)})
    return usable, missing


def measure_count(
    op: Operation,
    count: int,
    implementations: Implementations,
    roof: Limit,
    dtype: str,
    redop: str,
    ranks: Ranks,
    budget: Budget,
) -> tuple[list[Row], list[Row]]:
    """One size: a row for each implementation, and the roofline's, if anything moves. Collective."""
    cases = {
        name: Case(op, count, dtype, redop, ranks.rank, ranks.size, implementation.empty)
        for name, implementation in implementations.items()
    }
    contenders = [Contender(n, implementations[n].bind(case), case.rewrite) for n, case in cases.items()]
    first = {contender.name: _first_call(contender, cases[contender.name], ranks) for contender in contenders}
    size_bytes = count * np.dtype(dtype).itemsize
    times = measure([*contenders, *([roof.contender(op, size_bytes)] if count else [])], ranks, budget)
    rows = []
    for name, case in cases.items():
        last = sum(ranks.gather(case.wrong()))
        rows.append(row(case, name, times[name], max(first[name], last)))
    return rows, [roof.row(op, size_bytes, times[ROOFLINE])] if count else []


def row(case: Case, name: str, times: Times, wrong: int) -> Row:
    """One implementation's line."""
    time_us = percentiles(times, 1e-6)
    algbw = case.size_bytes / time_us["p50"] / 1e3
    return {
        "op": case.operation.name,
        "impl": name,
        "bytes": case.size_bytes,
        "count": case.count,
        "dtype": case.input.dtype.name,
        "redop": case.redop if case.operation.reduces else "none",
        "time_us": time_us,
        "algbw_gbps": algbw,
        "busbw_gbps": algbw * case.operation.busbw_factor(case.size),
        "wrong": wrong,
        "calls": len(times),
    }


def sizes_of(low: int, high: int, factor: int) -> list[int]:
    """low, low·factor, … up to high."""
    if not 1 <= low <= high or factor < 2:
        raise BenchError(f"expected 1 <= --min <= --max and --factor >= 2, got {low}, {high} and {factor}")
    sizes = [low]
    while sizes[-1] * factor <= high:
        sizes.append(sizes[-1] * factor)
    return sizes


def counts_of(op: Operation, sizes: Sequence[int], itemsize: int, size: int) -> list[int]:
    """Element counts for wanted sizes in bytes, each once. A barrier has one: none."""
    return list(dict.fromkeys(op.count(size_bytes, itemsize, size) for size_bytes in sizes))


def parse_bytes(text: str) -> int:
    """8, 4K, 64M or 1G: powers of 1024."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if unit not in ("", "K", "M", "G") or not number.isdecimal():
        raise ArgumentTypeError(f"expected bytes such as 8, 4K, 64M or 1G, got {text!r}")
    return int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]


def _first_call(contender: Contender, case: Case, ranks: Ranks) -> int:
    """Wrong elements over all ranks after a first, untimed call."""
    contender.rewrite()
    ranks.barrier()
    contender.call()
    return sum(ranks.gather(case.wrong()))


def _parser(rank: int) -> Parser:
    parser = Parser(rank, prog="python -m bench collectives", description=__doc__)
    add = parser.add_argument
    kinds = ", ".join(OPERATIONS)
    add("--op", default="all_reduce", help=f"operations by comma, of {kinds}")
    kinds = "pycomm, pycomm:ring, pycomm:ring+fp16, mpi, gloo (bench/implementations holds them)"
    add("--impl", default="pycomm,mpi,gloo", help=f"implementations by comma, such as {kinds}")
    add("--plugin", metavar="MODULE", help="import it first: it registers algorithms or implementations")
    add("--min", type=parse_bytes, default="8", metavar="BYTES", help="smallest size (default %(default)s)")
    add("--max", type=parse_bytes, default="64M", metavar="BYTES", help="largest size (default %(default)s)")
    add("--factor", type=int, default=4, help="from one size to the next (default %(default)s)")
    add("--dtype", default="float32", choices=DTYPES)
    add("--redop", default="sum", choices=tuple(REDUCTIONS))
    parser.add_budget(seconds=4.0, calls=1000)
    return parser
