"""`python -m bench training`: whole training steps, with and without communication, interleaved in one run.

Every implementation trains its own copy of the same model on the same batches, with one optimizer and one
compute thread. A step's time is that of the worst rank. `none` is the same processes at once without
communication: no hooks, no buckets. Copies that must stay equal over ranks are compared, bit by bit, when the
time is up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pycomm
from bench import output
from bench.facts import facts
from bench.memory import Peak
from bench.options import Parser, build, names, split
from bench.output import Row
from bench.ranks import Ranks
from bench.timing import Budget, Contender, measure, percentiles

if TYPE_CHECKING:
    from bench.steps import Step
    from bench.workloads import Workload

TURN_S = 0.5


def main(arguments: Sequence[str]) -> int:
    """Runs, prints on rank 0; returns 1 if copies that must be equal are not. Collective."""
    ranks = Ranks(pycomm.init())
    parser = _parser(ranks.rank)
    options = parser.parse_args(arguments)
    # torch comes after pycomm.init(), which would warn of its threads.
    import torch

    from bench.workloads import workload

    torch.set_num_threads(1)
    with parser.reporting():
        workloads = [workload(name, ranks.rank, options.optimizer) for name in names(options.model)]
        budget = Budget(options.seconds, options.iters, options.warmup, TURN_S)
        output.check_writable(options.json, ranks)
    result = facts("training", arguments, ranks) | {"rows": []}
    for load in workloads:
        with parser.reporting():
            steps, peaks = begin(options.impl, load, ranks)
        rows = measure_steps(load.name, steps, ranks, budget)
        for row in rows:
            row |= {"optimizer": options.optimizer, "peak_mb": peaks[row["impl"]]}
        result["rows"] += rows
        for step in reversed(steps.values()):
            step.close()
        if ranks.rank == 0:
            output.print_steps(rows)
    if ranks.rank == 0:
        output.write(options.json, result)
    return int(any(row["equal"] is False for row in result["rows"]))


def begin(chosen: str, load: Workload, ranks: Ranks) -> tuple[dict[str, Step], dict[str, float]]:
    """The implementations, each after two steps, and the memory in MB that each had at the height of the
    second one beyond what was there before it, the mean over ranks. Collective."""
    from bench.steps import STEPS, Step

    Step((), load, ranks)()  # what is loaded and allocated once is nobody's
    steps: dict[str, Step] = {}
    peaks: dict[str, float] = {}
    for item in names(chosen):
        STEPS.factory(split(item)[0])
    for item in names(chosen):
        ranks.barrier()
        peak = Peak()
        steps |= build(STEPS, item, load, ranks)
        steps[item]()
        with peak:
            steps[item]()
        peaks[item] = sum(ranks.gather(peak.nbytes)) / ranks.size / 1e6
    return steps, peaks


def measure_steps(model: str, steps: dict[str, Step], ranks: Ranks, budget: Budget) -> list[Row]:
    """A row for each implementation. Collective."""
    times = measure([Contender(name, step) for name, step in steps.items()], ranks, budget)
    return [
        {
            "model": model,
            "impl": name,
            "ranks": ranks.size,
            "step_ms": percentiles(times[name], 1e-3),
            "equal": equal_on_all(step, ranks) if step.synchronized else None,
            "steps": len(times[name]),
        }
        for name, step in steps.items()
    ]


def equal_on_all(step: Step, ranks: Ranks) -> bool:
    """Whether all ranks hold the same parameters. Collective."""
    digest = hashlib.sha256()
    for parameter in step.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return len(set(ranks.gather(digest.digest()))) == 1


def _parser(rank: int) -> Parser:
    parser = Parser(rank, prog="python -m bench training", description=__doc__)
    add = parser.add_argument
    add("--model", default="gpt,mlp", help="models by comma, of gpt, mlp (default %(default)s)")
    add("--optimizer", default="sgd", help="sgd, or adam: torch's fused (default %(default)s)")
    kinds = "none, pycomm, pycomm:overlap=on, pycomm+fp16, zero1, ddp-gloo (bench/steps holds them)"
    add("--impl", default="none,pycomm,ddp-gloo", help=f"implementations by comma, such as {kinds}")
    parser.add_budget(seconds=60.0, calls=100)
    return parser
