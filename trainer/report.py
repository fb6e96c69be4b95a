"""A picture of a run's loss and evaluations, drawn from its metrics.jsonl. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from trainer.errors import TrainerError
from trainer.files import replacing
from trainer.rows import SPLIT_OF, read_rows


def report(run: Path, out: Path) -> None:
    """Writes the picture `out`, in the format of its ending.

    Raises TrainerError if `run` holds no run, or `out` cannot be written or has another ending.
    """
    rows = read_rows(run / "metrics.jsonl")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    formats = figure.canvas.get_supported_filetypes()
    form = out.suffix.removeprefix(".").lower()
    if form not in formats:
        raise TrainerError(f"{out}: expected a picture's ending, one of {', '.join(sorted(formats))}")
    axes = figure.subplots()
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], linewidth=1, label="training")
    for key, split in SPLIT_OF.items():
        evaluated = [row for row in rows if key in row]
        if evaluated:
            steps, losses = zip(*((row["step"], row[key]["loss"]) for row in evaluated), strict=True)
            axes.plot(steps, losses, "o-", label=split)
    axes.set(xlabel="step", ylabel="loss", title=str(run))
    axes.legend()
    with replacing(out) as partial:
        figure.savefig(partial, format=form)
