"""docs/launching.md and its scripts, on one machine with the variables that a scheduler sets."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, python_path

LAUNCH = ROOT / "examples" / "launch"
LINEAR = [
    "--data", "linear", "--model", "linear", "--epochs", "null", "--steps", "7", "--threads", "1", "--out"
]  # fmt: skip


@pytest.mark.parametrize("name", ["slurm.sh", "pbs.sh"])
def test_scripts_are_bash(name: str) -> None:
    assert os.access(LAUNCH / name, os.X_OK)
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True, timeout=20)


def test_files_that_the_page_names_exist() -> None:
    page = (ROOT / "docs" / "launching.md").read_text()
    named = set(re.findall(r"\(\.\./(examples/[\w./]+)\)", page)) | set(
        re.findall(r"examples/launch/\w+", page)
    )
    assert {"examples/launch/slurm.sh", "examples/launch/pbs.sh", "examples/launch/Containerfile"} <= named
    assert [name for name in named if not list(ROOT.glob(f"{name}*"))] == []


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_a_job_runs_on_the_ranks_that_its_scheduler_gives(scheduler: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "nodes").write_text("localhost\n" * 2)
    given = {
        "slurm": {
            "SLURM_JOB_ID": "1", "SLURM_JOBID": "1", "SLURM_NNODES": "1", "SLURM_NTASKS": "2",
            "SLURM_TASKS_PER_NODE": "2", "SLURM_NODELIST": platform.node(),
            "SLURM_JOB_NODELIST": platform.node(),
        },
        "pbs": {"PBS_JOBID": "1", "PBS_NODEFILE": str(tmp_path / "nodes"), "PBS_O_WORKDIR": str(tmp_path)},
    }[scheduler]  # fmt: skip
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, **given, "PATH": path, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    script = ["bash", str(LAUNCH / f"{scheduler}.sh"), *LINEAR, str(tmp_path / "run")]
    for expected in ("ended after step 7", "nothing to do: 7 of 7 steps are done"):  # submitted twice
        done = subprocess.run(
            script, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert expected in done.stdout
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["world_size"] == 2
