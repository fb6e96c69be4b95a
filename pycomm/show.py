"""`python -m pycomm.show all_reduce:ring -n 3`: the plans of an algorithm, for people."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pycomm import _core
from pycomm.errors import InvalidArgument


def _numbers(listed: str) -> list[int]:
    return [int(number) for number in listed.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: shows the plans of a registered algorithm."""
    parser = argparse.ArgumentParser(prog="python -m pycomm.show", description="Shows the plan of each rank.")
    parser.add_argument("algorithm", help="such as all_reduce:ring; python -m pycomm.info lists them")
    parser.add_argument("-n", type=int, required=True, metavar="RANKS", help="how many ranks there are")
    parser.add_argument("--rank", type=int, help="only this one's")
    parser.add_argument(
        "--nodes", type=_numbers, default=[], help="a number for each rank, equal on one node: 0,0,1,1"
    )
    parser.add_argument("--root", type=int, default=0, help="of a collective that has one")
    options = parser.parse_args(arguments)
    collective, _, name = options.algorithm.partition(":")
    ranks = range(options.n) if options.rank is None else [options.rank]
    try:
        for rank in ranks:
            print(f"rank {rank}")
            print(_core.plan_text(collective, name, rank, options.n, options.root, options.nodes), end="")
    except InvalidArgument as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
