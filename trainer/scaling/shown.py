"""A scaling study as a table and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.drawing import new_figure, write_figure
from trainer.scaling.results import Results, Row, by_mode
from trainer.tables import UNKNOWN, megabytes, number, percent, table

MARKS = {"strong": "o-", "weak": "s--"}


def text(results: Results) -> str:
    """Markdown: a table for each mode, and how to read it."""
    lines = [f"    {results['command']}", "", f"{results['fit']}.", ""]
    for mode, rows in by_mode(results).items():
        kept = "the global batch" if mode == "strong" else "the batch per rank"
        lines += [f"## {mode} scaling: {kept} is fixed", "", _table(rows, results["target"]), ""]
        failed = [f"FAILED with {row['ranks']} ranks: {row['error']}" for row in rows if row["error"]]
        lines += [*failed, *([""] if failed else [])]
    return "\n".join([*lines, *_notes(results), ""])


def _table(rows: Sequence[Row], target: str | None) -> str:
    head = ["ranks", "batch", "steps", "step ms", "samples/s", "speed-up", "efficiency", "exposed ms"]
    head += ["of step", "held MB", "peak MB", "last loss", *([f"s to {target}"] if target else [])]
    return table(head, [_cells(row, bool(target)) for row in rows], left=0)


def _cells(row: Row, target: bool) -> list[str]:
    get = row.get
    reached = get("to_target")
    missed = UNKNOWN if row["error"] else "not reached"
    return [
        str(row["ranks"]),
        number(get("global_batch")),
        number(get("steps")),
        number(get("step_ms"), 2),
        number(get("samples_per_s")),
        number(row["speedup"], 2),
        percent(row["efficiency"], 1),
        number(get("exposed_ms"), 2),
        percent(get("exposed_ms"), get("step_ms")),
        megabytes(get("held_bytes")),
        megabytes(get("peak_rss_bytes")),
        number(get("loss_last"), 4),
        *([f"{reached['s']:.2f} (step {reached['step']})" if reached else missed] if target else []),
    ]


NOTES = """\
Step, samples/s and exposed communication (from the end of backward to the last reduction): the median step,
as rank 0 saw it. Speed-up: samples/s over those of the smallest number of ranks; efficiency: that over how
many times as many ranks there are. Held: parameters, gradients and optimizer state of the rank with the most;
peak: what its process had at most. Seconds to a target are those of its steps, without evaluations."""


def _notes(results: Results) -> list[str]:
    waiting = [f"Not run: {', '.join(results['not_run'])}.", ""] if results["not_run"] else []
    most = max((row["ranks"] for row in results["runs"]), default=0) * results["threads"]
    crowded = (
        f"Up to {most} threads share the {results['cores']} cores of this machine: where there are more "
        "threads than\ncores, efficiency says little about communication."
    )
    return [*waiting, NOTES, *([crowded] if most > results["cores"] else [])]


# ---- the picture


def _percent_of_step(row: Row) -> float | None:
    return 100 * row["exposed_ms"] / row["step_ms"] if row["step_ms"] else None


# Title, unit, what of a row, and what is ideal for so many times the ranks of the first run.
PANELS: list[tuple[str, str, Callable[[Row], float | None], Callable[[float], float] | None]] = [
    ("speed-up", "samples/s over those of the first run", lambda row: row["speedup"], lambda times: times),
    ("efficiency", "% of a linear speed-up", lambda row: _scaled(row["efficiency"], 100), lambda _: 100),
    ("exposed communication", "% of a step", _percent_of_step, None),
    ("memory held per rank", "MB (10^6 bytes)", lambda row: _scaled(row["held_bytes"], 1e-6), None),
    ("time to target", "seconds of training", lambda row: (row["to_target"] or {}).get("s"), None),
    ("steps to target", "steps", lambda row: (row["to_target"] or {}).get("step"), None),
]


def draw(results: Results, out: Path) -> None:
    """Panels over ranks, with a curve for each mode. Raises TrainerError if `out` cannot be written."""
    curves = {mode: [row for row in rows if not row["error"]] for mode, rows in by_mode(results).items()}
    counts = sorted({row["ranks"] for rows in curves.values() for row in rows}) or [1]
    targeted = any(row["to_target"] for rows in curves.values() for row in rows)
    figure = new_figure(17 if targeted else 12, 8, out)
    figure.suptitle(results["fit"] + (f"; target: {results['target']}" if targeted else ""))
    panels = figure.subplots(2, 3 if targeted else 2).flat
    for panel, (title, label, value, ideal) in zip(panels, PANELS, strict=False):
        if ideal:
            panel.plot(counts, [ideal(n / counts[0]) for n in counts], ":", color="grey", label="ideal")
        for mode, rows in curves.items():
            points = [(row["ranks"], value(row)) for row in rows if value(row) is not None]
            panel.plot([x for x, _ in points], [y for _, y in points], MARKS[mode], label=mode, alpha=0.8)
        panel.margins(y=0.1)
        panel.set_ylim(bottom=0)
        panel.set_xticks(counts)
        panel.set(title=title, xlabel="ranks", ylabel=label)
        panel.grid(alpha=0.3)
        if curves:
            panel.legend()
    write_figure(figure, out)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
