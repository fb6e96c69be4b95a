"""Each C++ test as a case of its own process, with a time limit."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("PYCOMM_TESTS", ROOT / "build" / "editable" / "pycomm_tests"))
LIMIT_S = 60


def names() -> list[str]:
    if not PROGRAM.is_file():
        raise FileNotFoundError(f"{PROGRAM} is not built: `make test` builds it")
    listed = subprocess.run([PROGRAM, "--list"], capture_output=True, text=True, check=True, timeout=LIMIT_S)
    return listed.stdout.split()


NAMES = names()


def test_every_test_file_has_a_listed_test() -> None:
    for path in sorted(Path(__file__).parent.glob("*_test.cc")):
        declared = [
            line[5:].split(")")[0] for line in path.read_text().splitlines() if line.startswith("TEST(")
        ]
        assert declared, f"{path.name} declares no test"
        assert set(declared) <= set(NAMES), f"{path.name} is not in {PROGRAM}: is it an old build?"


@pytest.mark.parametrize("name", NAMES)
def test_cpp(name: str) -> None:
    result = subprocess.run([PROGRAM, name], capture_output=True, text=True, timeout=LIMIT_S)
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout}{result.stderr}"
