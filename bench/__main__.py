"""`python -m bench collectives …`, `… selection …`, `… training …` (under a launcher), `… network …` and
`… report …`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "collectives": "time collectives of pycomm and its peers, interleaved in one run",
    "selection": "time the automatic choice of algorithm against every forced one",
    "training": "time whole training steps, interleaved in one run",
    "gpu": "time all_reduce of CUDA tensors, beside the same by hand",
    "network": "time collectives between hosts with limited links, made of namespaces of this machine (root)",
    "report": "turn results into Markdown tables",
}


def main(arguments: Sequence[str]) -> int:
    """Runs a command; returns the exit status."""
    if arguments[:1] and arguments[0] in COMMANDS:
        command = importlib.import_module(f"bench.{arguments[0]}")
        return int(command.main(arguments[1:]))
    lines = [f"  {name:12} {summary}" for name, summary in COMMANDS.items()]
    text = "\n".join(["usage: python -m bench COMMAND …   (COMMAND --help says more)", *lines])
    if arguments[:1] in (["-h"], ["--help"]):
        print(text)
        return 0
    print(f"expected a command, got {' '.join(arguments[:1]) or 'none'}\n{text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
