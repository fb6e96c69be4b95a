"""`python -m bench network`: collectives between hosts, on one machine, whose links have a limited rate.

Makes the hosts (bench/hosts.py), runs `bench collectives` on them and keeps its result. All options that are
not listed here are those of `bench collectives`. Ends with 1 if shared memory crossed from one host to
another, where nothing of the network would be measured; with 3 where this machine cannot have hosts, saying
why.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.hosts import RATE, CannotError, hosts

CANNOT = 3


def main(arguments: Sequence[str]) -> int:
    """Runs, prints, writes; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench network",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--hosts", type=int, default=2, metavar="N", help="how many (default %(default)s)")
    add("--ranks", type=int, default=1, metavar="N", help="on each host (default %(default)s)")
    add("--rate", default=RATE, help="of each link, each way, in the words of tc (default %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the result there")
    options, more = parser.parse_known_args(arguments)
    if options.hosts < 2 or options.ranks < 1:
        parser.error(f"expected --hosts from 2 and --ranks from 1, got {options.hosts} and {options.ranks}")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json {options.json}: there is no such folder")
    try:
        with tempfile.TemporaryDirectory() as folder, hosts(options.hosts, options.rate) as network:
            made = Path(folder) / "result.json"
            words = ["-m", "pycomm.launch", "-n", str(options.hosts * options.ranks)]
            words += [
                *network.launch(options.ranks),
                "-m",
                "bench",
                "collectives",
                *more,
                "--json",
                str(made),
            ]
            status = subprocess.run([*network.enter, sys.executable, *words], check=False).returncode
            result = json.loads(made.read_text()) if made.exists() else None
    except CannotError as error:
        print(f"python -m bench network: {error}", file=sys.stderr)
        return CANNOT
    if result is None:
        return status or 1
    result |= {"command": f"python -m bench network {shlex.join(arguments)}".rstrip(), "rate": options.rate}
    print("\ntransports:", *pairs(result), sep="\n  ")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written: {options.json}")
    crossed = crossing(result)
    for fault in crossed:
        print(f"python -m bench network: {fault}", file=sys.stderr)
    return status or int(bool(crossed))


def pairs(result: dict[str, Any]) -> list[str]:
    """A line for each rank: where it is, and by what it reaches each of the others."""
    return [
        f"rank {rank} on {host}: {' '.join(to)}"
        for rank, (host, to) in enumerate(zip(result["hosts"], result["transports"], strict=True))
    ]


def crossing(result: dict[str, Any]) -> list[str]:
    """What is wrong with the network: ranks of different hosts that share memory."""
    of = result["hosts"]
    return [
        f"rank {rank} on {of[rank]} shares memory with rank {peer} on {of[peer]}"
        for rank, to in enumerate(result["transports"])
        for peer, transport in enumerate(to)
        if of[rank] != of[peer] and transport == "shm"
    ]
