"""build_support/check_layers.py: every seeded breach is found, and nothing else."""

from __future__ import annotations

from pathlib import Path

import check_layers
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small project without a breach."""
    write(tmp_path, "csrc/core/view.h", "#include <cstddef>\n")
    write(tmp_path, "csrc/engine/engine.h", '#include "core/view.h"\n')
    write(tmp_path, "csrc/transport/mpi.cc", '#include <mpi.h>\n\n#include "core/view.h"\n')
    write(tmp_path, "csrc/bindings/module.cc", '#include <pybind11/pybind11.h>\n#include "engine/engine.h"\n')
    write(tmp_path, "pycomm/work.py", "from pycomm import _core\n")
    write(
        tmp_path, "trainer/strategies/zero.py", "from trainer.strategies._shards import cut\nimport pycomm\n"
    )
    write(tmp_path, "trainer/strategies/single.py", "")
    write(tmp_path, "trainer/strategies/_shards.py", "")
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def breaches(root: Path) -> list[str]:
    checks = (check_layers.include_breaches, check_layers.import_breaches, check_layers.length_breaches)
    return [breach for check in checks for breach in check(root)]


def test_a_clean_tree_has_no_breach(tree: Path) -> None:
    assert breaches(tree) == []
    assert check_layers.main(tree) == 0


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("csrc/core/bad.h", '#include "engine/engine.h"', 'core may not include "engine/engine.h"'),
        ("csrc/algorithm/bad.cc", '#include "transport/t.h"', "no file of csrc/"),
        ("csrc/plan/bad.cc", "#include <mpi.h>", "<mpi.h> may be included only in"),
        ("csrc/engine/bad.cc", "  #  include <Python.h>", "<Python.h> may be included only in"),
        ("csrc/engine/bad.cc", '#include "cuda_runtime.h"', "<cuda_runtime.h> may be included only in"),
        ("csrc/bindings/bad.cc", "#include <torch/extension.h>", "may be included only in no file"),
        ("csrc/extra/bad.cc", "", "'extra' is no layer"),
        ("csrc/core/long.h", "\n" * 501, "501 lines, at most 500"),
        ("pycomm/bad.py", "import trainer.config", "pycomm may not import trainer.config"),
        ("pycomm/bad.py", "def f():\n    from trainer import config", "pycomm may not import trainer.config"),
        ("pycomm/bad.py", "import (", "bad.py:1: "),
        ("trainer/bad.py", "import bench.report", "trainer may not import bench.report"),
        ("trainer/strategies/bad.py", "from trainer.strategies.zero import Zero", "may not import another"),
        ("trainer/strategies/bad.py", "from . import zero", "may not import another"),
        ("trainer/strategies/bad.py", "from .zero import Zero", "may not import another"),
    ],
)
def test_a_breach_is_found(
    tree: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, complaint: str
) -> None:
    write(tree, name, text)
    found = breaches(tree)
    assert len(found) == 1, found
    assert found[0].startswith(name)
    assert complaint in found[0]
    assert check_layers.main(tree) == 1
    assert found[0] in capsys.readouterr().out


def test_a_folder_without_sources_is_not_taken_for_a_clean_one(tmp_path: Path) -> None:
    assert check_layers.main(tmp_path) == 2
