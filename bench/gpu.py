"""`python -m bench gpu`: all_reduce of CUDA tensors, beside the same by hand and its parts.

    pycomm    the call on the tensor
    by hand   the tensor copied into pinned memory, the call on that, the result copied back
    copies    those two copies alone
    host      the call alone, on the pinned memory

Times are medians over calls of the worst rank, in µs. Ranks take the cards in turn, and may share one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

import pycomm
from bench.options import Parser
from bench.ranks import Ranks
from bench.timing import Budget, Contender, measure, percentiles

NAMES = ("pycomm", "by hand", "copies", "host")


def main(arguments: Sequence[str]) -> int:
    """Runs, prints on rank 0; returns 1 if a sum was wrong. Collective."""
    ranks = Ranks(pycomm.init())
    parser = Parser(ranks.rank, prog="bench gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="another shows that this runs (default %(default)s)")
    parser.add_argument("--min", type=int, default=1 << 12, help="bytes (default %(default)s)")
    parser.add_argument("--max", type=int, default=1 << 28, help="bytes (default %(default)s)")
    parser.add_budget(seconds=4.0, calls=200)
    options = parser.parse_args(arguments)
    with parser.reporting():
        budget = Budget(options.seconds, options.iters, options.warmup)
    if options.device == "cuda":
        torch.cuda.set_device(ranks.rank % torch.cuda.device_count())
    if ranks.rank == 0:
        print(f"{'bytes':>12}" + "".join(f"{name:>12}" for name in NAMES) + "  wrong", flush=True)
    wrong = 0
    size = options.min
    while size <= options.max:
        wrong += measure_size(size, options.device, ranks, budget)
        size *= 4
    return int(wrong > 0)


def measure_size(size: int, device: str, ranks: Ranks, budget: Budget) -> int:
    """Prints a row on rank 0; returns how many elements of a sum are wrong on any rank."""
    comm, cuda = ranks.comm, device == "cuda"
    x = torch.empty(max(1, size // 4), device=device)
    host = torch.empty(x.shape, pin_memory=cuda)

    def settle() -> None:
        if cuda:
            torch.cuda.synchronize()

    def rewrite() -> None:
        x.fill_(ranks.rank + 1)
        host.fill_(ranks.rank + 1)
        settle()

    def copies() -> None:
        host.copy_(x)
        x.copy_(host)
        settle()

    def by_hand() -> None:
        host.copy_(x)
        comm.all_reduce(host)
        x.copy_(host)
        settle()

    calls = (lambda: comm.all_reduce(x), by_hand, copies, lambda: comm.all_reduce(host))
    contenders = [Contender(name, call, rewrite) for name, call in zip(NAMES, calls, strict=True)]
    times = measure(contenders, ranks, budget)
    wrong = 0
    for call in calls[:2]:
        rewrite()
        call()
        wrong += int((x != ranks.size * (ranks.size + 1) / 2).sum())
    wrong = sum(ranks.gather(wrong))
    if ranks.rank == 0:
        medians = "".join(f"{percentiles(times[name], 1e-6)['p50']:12.1f}" for name in NAMES)
        print(f"{4 * len(x):12}{medians}  {wrong}", flush=True)
    return wrong
