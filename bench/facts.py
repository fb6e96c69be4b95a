"""On what a result was measured: enough to judge it and to repeat it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pycomm
from bench.ranks import Ranks


def facts(bench: str, arguments: Sequence[str], ranks: Ranks) -> dict[str, Any]:
    """The head of a result file. Collective."""
    launcher = f"-m pycomm.launch -n {ranks.size} -m bench" if ranks.size > 1 else "-m bench"
    return {
        "bench": bench,
        "command": f"python {launcher} {bench} {shlex.join(arguments)}".rstrip(),
        "ranks": ranks.size,
        "nodes": ranks.nodes(),
        "hosts": ranks.gather(platform.node()),
        "transports": ranks.gather([ranks.comm.transport_to(peer) for peer in range(ranks.size)]),
        "transport": ranks.comm.transport,
        "progress": ranks.comm.progress,
        "versions": versions(),
        "machine": machine(),
    }


def versions() -> dict[str, str]:
    info = pycomm.info()
    found = {"pycomm": info["pycomm"], "python": info["python"], "mpi": info["mpi"].split(", package")[0]}
    for package in ("mpi4py", "numpy", "torch"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Rank 0's. The load tells what else ran: below 0.5 the machine was quiet."""
    return {
        "cpu": _cpu_model(),
        "cores": pycomm.info()["cores"],
        "isa": pycomm.info()["isa"],
        "last_cache": _read("/sys/devices/system/cpu/cpu0/cache/index3/size"),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
