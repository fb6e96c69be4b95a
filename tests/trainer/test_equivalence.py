"""A step is the same step at any number of ranks: over MPI, one launch for each, and on threads."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import pycomm
from pycomm.testing import run_threads
from trainer import FitConfig, fit

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs mlxtend")

CASES = 12
PROGRAM = Path(__file__).with_name("equivalence_program.py")


def load_program() -> object:
    specification = importlib.util.spec_from_file_location("equivalence_program", PROGRAM)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of `fit` as equivalence_program.py runs it, with the strategy that sends nothing."""
    out = tmp_path_factory.mktemp("single")
    config = FitConfig(
        strategy="single", out=out, steps=10, global_batch=10, optimizer="adagrad", seed=11, threads=1
    )
    run_threads(1, lambda comm: fit(config, comm))
    return losses(out)


@pytest.mark.timeout(200)
@pytest.mark.parametrize("size", [2, *(pytest.param(n, marks=pytest.mark.long) for n in (3, 4))])
def test_every_case_is_the_step_of_one_process_over_mpi(
    size: int, tmp_path: Path, single: list[float], environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "pycomm.launch", "-n", str(size), str(PROGRAM), str(tmp_path)]
    finished = subprocess.run(
        command, capture_output=True, text=True, timeout=180, check=False, env=environment
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert f"equivalent: {size} ranks, {CASES} cases" in finished.stdout
    assert losses(tmp_path) == pytest.approx(single, rel=1e-5)
    assert json.loads((tmp_path / "summary.json").read_text())["world_size"] == size


@pytest.mark.parametrize("size", [1, 3])
def test_every_case_is_the_step_of_one_process_on_threads(size: int) -> None:
    program = load_program()
    data, model = program.data_and_model()

    def rank(comm: pycomm.Communicator) -> int:
        return program.run_cases(comm, data, model)

    assert run_threads(size, rank) == [CASES] * size
