"""Two ranks that train, are killed with SIGKILL at a random moment and resumed, again and again, until done.

    python -m tests.trainer.chaos_checkpoint --kills 20 --seed 1        # make chaos-checkpoint

After each kill every checkpoint that is there must be whole, and the newest no older than before. In the end
parameters and metrics are those of a run that nobody killed, to the bit; the model has dropout.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from torch import nn

from tests import helpers
from trainer import MODELS
from trainer.checkpoint.stored import Checkpoint, saved

RANKS = 2
LIMIT_S = 120  # for one start
TIMES = {"step_ms", "exposed_comm_ms"}


@MODELS.register("test_dropout")
def dropout(inputs: int, outputs: int, hidden: int = 800) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(0.3), nn.Linear(hidden, outputs))


def start(out: Path, steps: int, resume: str) -> helpers.Job:
    options = {
        "plugin": "tests.trainer.chaos_checkpoint", "data": "linear", "model": "test_dropout", "threads": 1,
        "optimizer": "adam", "lr": 0.003, "schedule": "cosine", "warmup_steps": 3, "global_batch": 60,
        "data_options.validation_fraction": 0.1, "eval_every": 5, "steps": steps, "save_every": 2,
        "out": out, "resume": resume,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return helpers.start(RANKS, "-m", "trainer", "fit", *words)


def run(out: Path, steps: int, resume: str = "none") -> None:
    """To the end."""
    outcome = start(out, steps, resume).finish(LIMIT_S)
    assert outcome.status == 0, str(outcome)


def killed(out: Path, steps: int, resume: str, after_rows: int, then_s: float) -> bool:
    """Whether it was killed: so long after that many rows, or never if it ended before."""
    job = start(out, steps, resume)
    until = time.monotonic() + LIMIT_S
    while len(rows(out)) < after_rows and job.process.poll() is None:
        assert time.monotonic() < until, "no progress"
        time.sleep(0.002)
    time.sleep(then_s)
    ended = job.process.poll() is not None
    job.kill()
    stdout, stderr = job.process.communicate(timeout=LIMIT_S)
    assert not ended or job.process.returncode == 0, stdout + stderr
    return not ended


def rows(out: Path) -> list[dict[str, Any]]:
    """Those that are whole, without times."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in whole]


def newest(out: Path) -> int:
    """The step of the newest checkpoint, 0 for none. Raises TrainerError if one is not whole."""
    folders = saved(out / "checkpoints")
    for folder in folders.values():
        Checkpoint(folder).verify()
    return max(folders, default=0)


def compare(out: Path, expected: Path) -> None:
    assert rows(out) == rows(expected)
    ours, theirs = (json.loads((path / "summary.json").read_text()) for path in (out, expected))
    for name in ("param_sha256", "eval", "validation", "best", "steps", "loss_last"):
        assert ours[name] == theirs[name], name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    drawn = random.Random(arguments.seed)
    steps = 6 * arguments.kills + 20
    with tempfile.TemporaryDirectory() as folder:
        expected, out = Path(folder) / "expected", Path(folder) / "killed"
        run(expected, steps)
        step = kills = 0
        while kills < arguments.kills:
            row, wait_s = step + drawn.randint(1, 8), drawn.uniform(0, 0.05)
            if not killed(out, steps, "auto", row, wait_s):
                break
            kills += 1
            before, step = step, newest(out)
            print(
                f"killed {wait_s:.3f} s after row {row}: {len(rows(out))} rows, checkpoint {step}", flush=True
            )
            assert step >= before
        run(out, steps, "auto")
        compare(out, expected)
        print(f"{kills} kills, {steps} steps: every bit is that of the run that nobody killed")


if __name__ == "__main__":
    main()
