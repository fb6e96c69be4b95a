"""Tables of measured times: the file that `python -m pycomm.tune` writes and rank 0 reads in `init()`.

JSON, for people too:

    {"pycomm_tuned": 1,
     "machine": {"cpu": "AMD EPYC ...", "cores": 2},
     "groups": [{"ranks": 2, "ranks_per_machine": 2, "links": "shm",
                 "prices": {"call_s": 2e-06, "shm.byte_s": 1e-10, ...},
                 "times": [{"collective": "all_reduce", "width": 4, "bytes": [8, 64, ...],
                            "seconds": {"ring": [...], "mapped": [...]}}]}]}

A group is known by its ranks, how many share a machine, and the kinds of links between them. `width` is 2
for 16-bit elements and 4 for all others. `prices` are those of csrc/plan/prices.h, fitted to the times; they
price what was not measured, on groups of other sizes too.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from pycomm import _core
from pycomm.errors import InvalidArgument

FORMAT = 1


def default_path() -> Path:
    """Where tables are kept unless `PYCOMM_TUNED` names a file: in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pycomm" / "tuned.json"


def machine() -> dict[str, Any]:
    """What a table belongs to: times of another machine mislead."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": _cpu(), "cores": max(cores or 1, os.cpu_count() or 1)}


def load() -> tuple[str, str]:
    """The table for the engine, and a warning: empty texts where there is none. For rank 0.

    A table that `PYCOMM_TUNED` names and that cannot be used makes the first text "!" and what is wrong,
    which all ranks raise; one in the default place is left alone, with a warning.
    """
    named = os.environ.get("PYCOMM_TUNED", "")
    try:
        path = Path(named) if named else default_path()
        if not named and not path.exists():
            return "", ""
        return lines_of(read(path)), ""
    except (InvalidArgument, RuntimeError, OSError) as error:
        return (f"!PYCOMM_TUNED: {error}", "") if named else ("", f"not used: {error}")


def read(path: Path) -> dict[str, Any]:
    """The table in that file, checked. Raises InvalidArgument naming the file and what is wrong with it:
    torn, of another format, of another machine, or with names that this pycomm has not."""
    try:
        table = json.loads(path.read_text())
    except OSError as error:
        raise InvalidArgument(f"table {path}: {error.strerror}") from None
    except ValueError as error:
        raise InvalidArgument(f"table {path} is torn, or no table: {error}") from None
    if not isinstance(table, dict) or table.get("pycomm_tuned") != FORMAT:
        raise InvalidArgument(f"table {path}: expected an object with pycomm_tuned = {FORMAT}")
    if table.get("machine") != machine():
        raise InvalidArgument(
            f"table {path} was measured on another machine, {table.get('machine')}; this is {machine()}: "
            "measure here, with `python -m pycomm.launch -n N -m pycomm.tune`"
        )
    try:
        _core.check_table(lines_of(table))
    except (InvalidArgument, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidArgument(f"table {path} is torn, or of another pycomm: {error!s}") from None
    return table


def lines_of(table: dict[str, Any]) -> str:
    """The table as the engine reads it (csrc/plan/table.h)."""
    lines = []
    for group in table["groups"]:
        lines.append(f"group {group['ranks']:d} {group['ranks_per_machine']:d} {group['links']}")
        lines += [f"price {name} {value:.17g}" for name, value in group["prices"].items()]
        for times in group["times"]:
            sizes = times["bytes"]
            for algorithm, seconds in times["seconds"].items():
                pairs = " ".join(f"{b:d} {s:.17g}" for b, s in zip(sizes, seconds, strict=True))
                lines.append(f"times {times['collective']} {times['width']:d} {algorithm} {pairs}")
    return "\n".join(lines)


def merged(table: dict[str, Any] | None, group: dict[str, Any]) -> dict[str, Any]:
    """The table (or none) with that group in the place of an earlier one of its kind; what was measured of
    other collectives stays."""
    key = ("ranks", "ranks_per_machine", "links")
    others: list[dict[str, Any]] = []
    for earlier in (table or {"groups": []})["groups"]:
        if any(earlier[name] != group[name] for name in key):
            others.append(earlier)
            continue
        anew = {(times["collective"], times["width"]) for times in group["times"]}
        kept = [times for times in earlier["times"] if (times["collective"], times["width"]) not in anew]
        group = group | {"times": kept + group["times"]}
    return {"pycomm_tuned": FORMAT, "machine": machine(), "groups": [*others, group]}


def write(path: Path, table: dict[str, Any]) -> None:
    """Replace the file in one step: readers see the old table or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
        file.write(json.dumps(table, indent=1) + "\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
