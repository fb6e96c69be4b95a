"""Starts N ranks of a Python program with the mpirun that belongs to this installation.

    python -m pycomm.launch -n N [options of mpirun] script.py [arguments]
    python -m pycomm.launch -n N [options of mpirun] -m module [arguments]
    python -m pycomm.launch -n N [options of mpirun] -- program [arguments]

The program starts at `-m`, at the first word that ends in .py, or after `--` (for a script of another
name); what stands before it, except -n, goes to mpirun as it is. The ranks run under the Python that runs
this. The command is printed, the exit status is mpirun's, and Ctrl-C ends every rank.

To a plain mpirun this adds what ranks on one machine need, unless your options say where ranks go: no
binding (the engine has a thread of its own), more ranks than cores allowed, and then idle ranks that yield.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

MPIRUN_NAMES = ("mpirun", "mpiexec")
# Options of either launcher that say where ranks go, and variables of schedulers that do.
PLACEMENT = (
    "host",
    "H",
    "hosts",
    "hostfile",
    "machinefile",
    "f",
    "map-by",
    "rankfile",
    "ppn",
    "oversubscribe",
)
ALLOCATIONS = ("SLURM_JOB_ID", "PBS_NODEFILE", "LSB_HOSTS", "PE_HOSTFILE")


class LaunchError(RuntimeError):
    """The request cannot be launched; the message says why."""


@dataclass(frozen=True)
class Request:
    ranks: int
    options: tuple[str, ...]  # for mpirun
    program: tuple[str, ...]  # for python


@dataclass(frozen=True)
class Launcher:
    path: Path
    family: str  # "openmpi", "hydra" (MPICH and its kin) or "unknown"


def parse(arguments: Sequence[str]) -> Request:
    """Splits a command line into the count of ranks, mpirun's options and the program."""
    ranks: int | None = None
    options: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest[0]
        if word in ("-n", "-np", "--np"):
            ranks = rank_count(rest[:2])
            del rest[:2]
        elif word == "-m" or word.endswith(".py"):
            break
        elif word == "--":
            del rest[0]
            break
        else:
            options.append(rest.pop(0))
    if ranks is None:
        raise LaunchError("-n N is missing: how many ranks?")
    check_program(rest)
    return Request(ranks, tuple(options), tuple(rest))


def rank_count(words: Sequence[str]) -> int:
    value = words[1] if len(words) == 2 else ""
    if not value.isdecimal() or int(value) == 0:
        raise LaunchError(f"{words[0]} needs a count of ranks of at least 1, got '{value}'")
    return int(value)


def check_program(program: Sequence[str]) -> None:
    if not program or program == ["-m"]:
        raise LaunchError("no program: name a script.py, -m and a module, or -- and a program")
    if program[0] != "-m" and not Path(program[0]).is_file():
        raise LaunchError(f"there is no script '{program[0]}'")


def launcher_candidates(libmpi: Path | None, environ: Mapping[str, str]) -> list[Path]:
    """Where mpirun is looked for: beside the libmpi that we use, beside this Python, on PATH."""
    folders: list[Path] = []
    if libmpi is not None:
        for library in (Path(os.path.normpath(libmpi)), libmpi.resolve()):
            prefixes = [p.parent for p in library.parents if p.name in ("lib", "lib64")]
            # Open MPI refuses to be called as /bin/mpirun; where /lib is /usr/lib the resolved path finds it.
            folders += [prefix / "bin" for prefix in prefixes if prefix != Path("/")]
    folders.append(Path(sys.executable).parent)
    candidates = [folder / name for folder in folders for name in MPIRUN_NAMES]
    found = (shutil.which(name, path=environ.get("PATH", "")) for name in MPIRUN_NAMES)
    candidates += [Path(path) for path in found if path]
    return list(dict.fromkeys(candidates))


def find_launcher(libmpi: Path | None, environ: Mapping[str, str]) -> Launcher:
    """The first candidate that is a program; raises LaunchError with the places where it looked."""
    candidates = launcher_candidates(libmpi, environ)
    for path in candidates:
        if os.access(path, os.X_OK) and path.is_file():
            return Launcher(path, family_of(path, environ))
    places = ", ".join(dict.fromkeys(str(path.parent) for path in candidates))
    raise LaunchError(
        f"no mpirun and no mpiexec for the MPI library {libmpi}: looked in {places} and on PATH"
    )


def family_of(mpirun: Path, environ: Mapping[str, str]) -> str:
    answer = subprocess.run(
        [str(mpirun), "--version"], capture_output=True, text=True, timeout=30, env=dict(environ), check=False
    )
    said = answer.stdout + answer.stderr
    if "Open MPI" in said or "OpenRTE" in said:
        return "openmpi"
    return "hydra" if "HYDRA" in said or "Intel(R) MPI" in said else "unknown"


def usable_cores() -> int:
    return len(os.sched_getaffinity(0))


def mpirun_command(
    launcher: Launcher,
    request: Request,
    *,
    cores: int,
    environ: Mapping[str, str],
    python: str = sys.executable,
) -> list[str]:
    """The whole command line; `cores` and `environ` are those of this machine."""
    command = [str(launcher.path), "-n", str(request.ranks)]
    names = {word.split("=")[0].lstrip("-") for word in request.options if word.startswith("-")}
    if launcher.family == "openmpi":
        if "bind-to" not in names:
            command += ["--bind-to", "none"]
        placed = names & set(PLACEMENT) or any(name in environ for name in ALLOCATIONS)
        if not placed:
            command += ["--map-by", ":OVERSUBSCRIBE"]
            if request.ranks > cores:
                command += ["--mca", "mpi_yield_when_idle", "1"]
    # Not `python -u`: it writes each part of a print by itself, and the lines of several ranks would mix.
    return [*command, *request.options, python, *request.program]


def launch_environment(launcher: Launcher, environ: Mapping[str, str], *, root: bool) -> dict[str, str]:
    """The environment for mpirun: Open MPI refuses root (in containers, everybody) unless told twice."""
    result = dict(environ)
    if launcher.family == "openmpi" and root:
        result.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
        result.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    return result


def launch(arguments: Sequence[str]) -> NoReturn:
    """Becomes mpirun, so that its exit status and the terminal's signals are ours; raises LaunchError."""
    from pycomm import _core

    request = parse(arguments)
    launcher = find_launcher(Path(_core.libmpi_path()), os.environ)
    command = mpirun_command(launcher, request, cores=usable_cores(), environ=os.environ)
    print("pycomm.launch:", shlex.join(command), file=sys.stderr, flush=True)
    os.execve(command[0], command, launch_environment(launcher, os.environ, root=os.geteuid() == 0))


def main() -> NoReturn:
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        sys.exit(0)
    try:
        launch(arguments)
    except LaunchError as error:
        print(f"pycomm.launch: {error}\nSee python -m pycomm.launch --help", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
