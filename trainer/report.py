"""Runs side by side, `python -m trainer report runs/*`: a picture, and the same in numbers as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainer.drawing import colours, new_figure, running_median, write_figure
from trainer.errors import TrainerError
from trainer.files import replacing
from trainer.record import Record, names_of, rate, read_records
from trainer.rows import SPLIT_OF
from trainer.tables import UNKNOWN, megabytes, number, percent, table

MARKERS = {"validation": "o", "test": "s"}
TIMES_POINTS, LOSS_POINTS = 15, 60  # of a smoothed curve, about
LEGEND = (
    "loss: of the last step; test: the last evaluation of the test split; samples/s, step and exposed "
    "communication: the median step; held: parameters, gradients and optimizer state of the rank with the "
    "most; peak: what its process had at most. MB are 10^6 bytes."
)


def report(runs: Sequence[Path], out: Path, panels: Sequence[str] = ()) -> tuple[str, list[str]]:
    """Writes the picture `out`, in the format of its ending, and beside it the table as Markdown; returns
    that, and what is wrong with each folder that was left out. `panels`: of PANELS, all if not given.

    Raises TrainerError if no folder holds a run, for a panel that there is not, and if `out` cannot be
    written or has another ending.
    """
    unknown = [name for name in panels if name not in PANELS]
    if unknown:
        raise TrainerError(f"panels: expected of {', '.join(PANELS)}, got {', '.join(unknown)}")
    records, broken = read_records(runs)
    if not records:
        raise TrainerError("; ".join(broken))
    _draw(records, out, panels or list(PANELS))
    text = _table(records) + "".join(f"\nLeft out: {reason}\n" for reason in broken)
    with replacing(out.with_suffix(".md")) as partial:
        partial.write_text(text)
    return text, broken


# ---- the table


def _table(records: Sequence[Record]) -> str:
    head = ["run", "model", "strategy", "codec", "ended", "ranks", "batch", "steps", "loss", "test"]
    head += ["samples/s", "step ms", "exposed ms", "of step", "held MB", "peak MB"]
    rows = [_cells(record, name) for record, name in zip(records, names_of(records), strict=True)]
    return f"{table(head, rows, left=5)}\n\n{LEGEND}\n"


def _cells(record: Record, name: str) -> list[str]:
    summary, config, last = record.summary or {}, record.config, record.rows[-1]
    batches = [row["samples"] for row in record.rows if "samples" in row]
    return [
        name,
        f"{config.model} on {config.data}" if config else UNKNOWN,
        config.strategy if config else str(summary.get("strategy", UNKNOWN)),
        config.codec if config else str(summary.get("codec", UNKNOWN)),
        str(summary.get("ended", "no summary: interrupted, or still running")),
        str(summary.get("world_size", UNKNOWN)),
        number(max(batches) if batches else None),
        number(last["step"]),
        f"{last['loss']:.4g}",
        _tested(record),
        number(record.samples_per_s),
        number(record.step_ms, 2),
        number(record.exposed_ms, 2),
        percent(record.exposed_ms, record.step_ms),
        megabytes(sum(record.held_bytes.values()) or None),
        megabytes(summary.get("peak_rss_bytes")),
    ]


def _tested(record: Record) -> str:
    evaluated = [row["eval"] for row in record.rows if "eval" in row]
    values = {name: value for name, value in (evaluated or [{}])[-1].items() if name != "count"}
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


# ---- the picture


def _draw(records: Sequence[Record], out: Path, chosen: Sequence[str]) -> None:
    columns = min(2, len(chosen))
    lines = -(-len(chosen) // columns)
    figure = new_figure(7 if columns == 1 else 12, 4 * lines + 0.25 * len(records), out)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    palette = colours(len(records))
    names = names_of(records)
    for panel, name in zip(panels, chosen, strict=False):
        PANELS[name](panel, records, names, palette)
    for panel in panels[len(chosen) :]:
        panel.set_axis_off()
    if len(records) == 1:
        figure.suptitle(str(records[0].path))
    else:
        from matplotlib.lines import Line2D

        keys = [Line2D([], [], color=colour, linewidth=3) for colour in palette]
        figure.legend(keys, names, loc="outside upper center", ncols=min(4, len(names)), title="runs")
    write_figure(figure, out)


Panel = Callable[[Any, Sequence[Record], Sequence[str], Sequence[Any]], None]


def _loss(panel: Any, records: Sequence[Record], names: Sequence[str], palette: Sequence[Any]) -> None:
    from matplotlib.lines import Line2D

    found = {}
    for index, (record, colour) in enumerate(zip(records, palette, strict=True)):
        # The later the thinner: the curves of runs that compute the same lie upon each other.
        width = 1.4 + 3 * (1 - (index + 1) / len(records))
        _curve(panel, [(row["step"], row["loss"]) for row in record.rows], colour, LOSS_POINTS, width)
        for key, split in SPLIT_OF.items():
            points = [(row["step"], row[key]["loss"]) for row in record.rows if key in row]
            if points:
                panel.plot(
                    *zip(*points, strict=True),
                    MARKERS[split],
                    linestyle="--",
                    color=colour,
                    linewidth=width / 2,
                    markersize=3 + 2 * width,
                )
                found[split] = Line2D([], [], color="grey", linestyle="--", marker=MARKERS[split])
    legend = {"training": Line2D([], [], color="grey"), **found}
    panel.legend(list(legend.values()), list(legend))
    panel.set(title="loss", xlabel="step", ylabel="mean over samples or tokens")
    panel.grid(alpha=0.3)


def _throughput(panel: Any, records: Sequence[Record], names: Sequence[str], palette: Sequence[Any]) -> None:
    for record, colour in zip(records, palette, strict=True):
        rates = [(row["step"], rate(row)) for row in record.rows]
        _curve(panel, [(step, value) for step, value in rates if value is not None], colour)
    panel.set(title="throughput, all ranks", xlabel="step", ylabel="samples per second")
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)


def _exposed(panel: Any, records: Sequence[Record], names: Sequence[str], palette: Sequence[Any]) -> None:
    for record, colour in zip(records, palette, strict=True):
        rows = [row for row in record.rows if "exposed_comm_ms" in row]
        _curve(panel, [(row["step"], row["exposed_comm_ms"]) for row in rows], colour)
    panel.set(title="exposed communication", xlabel="step", ylabel="ms per step")
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)


def _memory(panel: Any, records: Sequence[Record], names: Sequence[str], palette: Sequence[Any]) -> None:
    """A bar for each run, in its colour, and a shade of it for each kind."""
    places = range(len(records))
    ends = [0.0] * len(records)
    kinds = dict.fromkeys(kind for record in records for kind in record.held_bytes)
    for index, kind in enumerate(kinds):
        alpha = 1 - 0.7 * index / len(kinds)
        lengths = [record.held_bytes.get(kind, 0) / 1e6 for record in records]
        panel.barh(places, lengths, left=ends, color=palette, alpha=alpha)
        panel.barh([0], [0], color="grey", alpha=alpha, label=kind)
        ends = [end + length for end, length in zip(ends, lengths, strict=True)]
    for place, end in zip(places, ends, strict=True):
        panel.text(end, place, f" {end:,.2f}" if end else " unknown", va="center")
    panel.set_yticks(list(places), names)
    panel.set_ylim(max(3, len(records)) - 0.5, -0.5)  # the first on top
    panel.set(title="memory held per rank, between two steps", xlabel="MB (10^6 bytes)")
    panel.margins(x=0.15)
    if kinds:
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=len(kinds))


PANELS: dict[str, Panel] = {
    "loss": _loss,
    "throughput": _throughput,
    "exposed": _exposed,
    "memory": _memory,
}


def _curve(
    panel: Any,
    points: Sequence[tuple[float, float]],
    colour: Any,
    smooth: int = TIMES_POINTS,
    width: float = 1.4,
) -> None:
    """Faintly what was measured, and over it the running median."""
    if not points:
        return
    steps, values = zip(*points, strict=True)
    window = len(values) // smooth * 2 + 1
    if window > 1:
        panel.plot(steps, values, color=colour, alpha=0.2, linewidth=0.7)
    panel.plot(steps, running_median(values, window), color=colour, linewidth=width)
