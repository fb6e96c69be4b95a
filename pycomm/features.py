"""What this build of pycomm and this machine can do."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Iterable
from typing import Any

from pycomm import _core, cuda
from pycomm.errors import InvalidArgument
from pycomm.tuned import default_path, load


def info() -> dict[str, Any]:
    """Versions, MPI, instruction sets, CUDA, transports, algorithms, codecs, the table of
    measured times. Starts no MPI; does not block."""
    mpi = _core.mpi_info()
    return {
        "pycomm": _core.__version__,
        "python": platform.python_version(),
        "mpi": mpi["version"].strip("\0 \n").splitlines()[0],
        "mpi_path": mpi["path"],
        "mpi_ulfm": mpi["ulfm"],
        "mpi_thread_level": mpi["thread_level"],
        "isa": _core.isa(),
        "isas": _core.available_isas(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "transports": _core.transports(),
        "algorithms": _core.algorithms(),
        "codecs": _core.codecs(),
        "cuda": cuda.facts(),
        "tuned": _table(),
        "missing": _missing(mpi),
    }


def check_transports(names: Iterable[str]) -> None:
    """Raises InvalidArgument for a transport that this build lacks, with the reason and those it has."""
    mpi, known = _core.mpi_info(), _core.transports()
    for name in names:
        if name not in known:
            why = _missing(mpi).get(name, "unknown")
            raise InvalidArgument(f"transport '{name}': {why}; there is {', '.join(known)}")


def _table() -> str:
    """The table of measured times that rank 0 would use here, or why there is none."""
    lines, warning = load()
    if lines.startswith("!") or warning:
        return warning or lines[1:]
    if not lines:
        return f"none at {default_path()}: python -m pycomm.launch -n N -m pycomm.tune measures one"
    groups = [line.split()[1:] for line in lines.splitlines() if line.startswith("group ")]
    found = ", ".join(f"{ranks} ranks over {links}" for ranks, _, links in groups)
    return f"{os.environ.get('PYCOMM_TUNED') or default_path()}: {found}"


def _missing(mpi: dict[str, Any]) -> dict[str, str]:
    """What a build or a machine can lack, and why it does here."""
    out = {}
    if not mpi["ulfm"]:
        out["ulfm"] = "this MPI library has no MPIX_Comm_revoke; Open MPI 5 has"
    if "nccl" not in _core.transports():
        out["nccl"] = "it moves CUDA tensors only, and this build moves those through host memory"
    if why := cuda.why_not():
        out["cuda"] = why
    for isa in ("avx2", "avx512"):
        if isa not in _core.available_isas():
            out[isa] = "this processor or its operating system does not offer it"
    if importlib.util.find_spec("torch") is None:
        out["torch"] = "not installed: pip install 'pycomm[trainer]'"
    return out
