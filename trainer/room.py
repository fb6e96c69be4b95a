"""Whether the ranks of a run have room on this machine, and under which strategy: a dry run's advice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own


def advice(held: Mapping[str, int], ranks: int, base: int, available: int | None) -> str:
    """One line. `held`: bytes per rank by strategy, in the order in which they are to be preferred; `base`:
    what a rank needs besides, libraries and data; `available`: bytes, None if unknown."""
    if available is None:
        return "this system does not tell how much memory is available"
    here = f"of {ranks} rank{'s' * (ranks > 1)} on this machine, with {available / 1e9:,.1f} GB available"
    each = f"(each needs {base / 1e9:,.1f} GB for libraries and data besides, and its activations)"
    room = {name: min(ranks, available // (count + base)) for name, count in held.items()}
    fitting = [name for name, count in room.items() if count == ranks]
    if fitting:
        return f"{here}, all have room with {fitting[0]}{_others(fitting[1:])} {each}"
    best = max(room, key=lambda name: room[name])
    return f"{here}, {room[best]} have room with {best}, and no more with any other: use more machines {each}"


def available_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """What new processes may take: the least of what the machine has and the container is allowed."""
    found = []
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemAvailable" in lines:
            found.append(1024 * int(lines["MemAvailable"].split()[0]))
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        found.append(max(0, int(limit.read_text()) - int(used.read_text())))
    return min(found, default=None)


def _others(names: list[str]) -> str:
    return f" (and {', '.join(names)})" if names else ""
