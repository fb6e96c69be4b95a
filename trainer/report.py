"""A picture of a run's loss and evaluations, drawn from its metrics.jsonl. Needs matplotlib."""

from __future__ import annotations

import json
from pathlib import Path

from trainer.errors import TrainerError


def report(run: Path, out: Path) -> None:
    """Writes the picture `out`; raises TrainerError if `run` holds no run."""
    metrics = run / "metrics.jsonl"
    if not metrics.is_file():
        raise TrainerError(f"{metrics} does not exist: expected the folder given to fit as --out")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], linewidth=1, label="training")
    for name, label in (("validation", "validation"), ("eval", "test")):
        evaluated = [row for row in rows if name in row]
        if evaluated:
            axes.plot(
                [row["step"] for row in evaluated],
                [row[name]["loss"] for row in evaluated],
                "o-",
                label=label,
            )
    axes.set(xlabel="step", ylabel="loss", title=str(run))
    axes.legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
