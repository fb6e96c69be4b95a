"""The trainer's DataParallel. Options: a codec, and `overlap=on`, `overlap=off` or `overlap=auto`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pycomm
from bench.errors import BenchError
from bench.ranks import Ranks
from bench.steps import STEPS, Step
from bench.workloads import Workload
from trainer import DataParallel


@STEPS.register("pycomm")
class Pycomm(Step):
    def __init__(self, options: Sequence[str], workload: Workload, ranks: Ranks) -> None:
        chosen = _arguments(options)
        super().__init__((), workload, ranks)
        self._parallel = DataParallel(self.model, ranks.comm, self.optimizer, loss_reduction="mean", **chosen)

    def close(self) -> None:
        self._parallel.close()


def _arguments(options: Sequence[str]) -> dict[str, Any]:
    """Options as DataParallel's arguments."""
    codecs = pycomm.info()["codecs"]
    arguments: dict[str, Any] = {}
    for option in options:
        name, _, value = option.partition("=")
        if option in codecs:
            arguments["codec"] = option
        elif name == "overlap" and value in ("on", "off", "auto"):
            arguments["overlap"] = value
        else:
            raise BenchError(
                f"pycomm: expected overlap=on|off|auto or a codec ({', '.join(codecs)}), got {option}"
            )
    return arguments
