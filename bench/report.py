"""`python -m bench report FILE.json …`: results as Markdown tables, with ratios against every competitor.

The first implementation of a run is its subject. A ratio says how many times as long the other one took:
above 1 the subject is faster, below 1, in bold, it is slower.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench import plot

Row = dict[str, Any]

ROOFLINE_BYTES = 1 << 20  # what is smaller never leaves the caches, or is all latency


def main(arguments: Sequence[str]) -> int:
    """Prints the tables, or writes each beside its JSON file."""
    parser = argparse.ArgumentParser(
        prog="python -m bench report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    parser.add_argument("--write", action="store_true", help="write FILE.md instead of printing")
    parser.add_argument(
        "--plot", action="store_true", help="also draw FILE.svg, of collectives or training steps"
    )
    options = parser.parse_args(arguments)
    for path in options.files:
        try:
            result = json.loads(path.read_text())
            text = render(result, path.stem)
        except (OSError, ValueError, KeyError) as error:
            print(f"python -m bench report: {path} is no result: {error!r}", file=sys.stderr)
            return 2
        if options.write:
            path.with_suffix(".md").write_text(text)
        else:
            print(text)
        if options.plot and result["bench"] in plot.DRAWINGS:
            try:
                plot.draw(result, path.with_suffix(".svg"))
            except ModuleNotFoundError as error:
                print(f"python -m bench report: --plot needs matplotlib: {error}", file=sys.stderr)
                return 2
    return 0


def render(result: Row, title: str) -> str:
    """One result as Markdown."""
    tables = {"collectives": _collectives, "selection": _selection, "training": _training}[result["bench"]]
    return "\n".join([f"# {title}", "", *_head(result), "", *tables(result)]) + "\n"


def _head(result: Row) -> list[str]:
    machine, versions = result["machine"], result["versions"]
    nodes = "one node" if result["nodes"] == 1 else f"{result['nodes']} nodes"
    nodes += f" with links of {result['rate']}" if "rate" in result else ""
    where = [
        f"{result['ranks']} ranks on {nodes}",
        f"pycomm over {result['transport']} (progress: {result['progress']})",
        f"{machine['cores']} cores of {machine['cpu']}",
        f"last cache {machine['last_cache'] or 'unknown'}",
        f"kernels {machine['isa']}",
        f"load before the run {machine['load_before']}",
    ]
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    return [f"    {result['command']}", "", f"{', '.join(where)}. {software}."]


# ---- collectives


def _collectives(result: Row) -> list[str]:
    lines: list[str] = []
    for op in dict.fromkeys(row["op"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["op"] == op]
        limits = {row["bytes"]: row for row in result["roofline"] if row["op"] == op}
        lines += [f"## {op}, {rows[0]['dtype']}, {rows[0]['redop']}", ""]
        lines += _by_size(rows) + (_bandwidths(rows, limits) if limits else [])
        lines += [""]
    lines += [f"{lack['impl']} {lack['reason']}." for lack in result["missing"]]
    return lines


def _by_size(rows: Sequence[Row]) -> list[str]:
    names = list(dict.fromkeys(row["impl"] for row in rows))
    subject, others = names[0], names[1:]
    head = ["bytes", *(f"{name}, µs" for name in names), *(f"{name} / {subject}" for name in others)]
    table, losses, wrong = [], [], []
    for size in dict.fromkeys(row["bytes"] for row in rows):
        at = {row["impl"]: row for row in rows if row["bytes"] == size}
        mine = at[subject]["time_us"]["p50"]
        cells = [_size(size), *(_spread(at[name]["time_us"], 1) for name in names)]
        table.append(cells + [_ratio(at[name]["time_us"]["p50"] / mine) for name in others])
        losses += [f"{_size(size)} against {name}" for name in others if at[name]["time_us"]["p50"] < mine]
        wrong += [f"{name} at {_size(size)}" for name in names if at[name]["wrong"]]
    lines = [*_table(head, table), "", "Times: median (p5 to p95) of the worst rank."]
    lines += [f"{subject} is slower at {'; '.join(losses)}."] if losses else []
    return lines + ([f"WRONG RESULTS: {'; '.join(wrong)}."] if wrong else [])


def _bandwidths(rows: Sequence[Row], limits: dict[int, Row]) -> list[str]:
    """Bus bandwidths, and how much that is of what memory or the wire allow."""
    names = list(dict.fromkeys(row["impl"] for row in rows))
    of = next(iter(limits.values())).get("of", "memory")
    unit, bits = ("Gbit/s", 8) if of != "memory" else ("GB/s", 1)
    head = ["bytes", *(f"{name}, {unit}" for name in names), f"{of}, {unit}"]
    table = []
    for size, limit in limits.items():
        cells = [_size(size)]
        means = size >= ROOFLINE_BYTES
        for row in rows:
            if row["bytes"] == size:
                share = limit["time_us"]["p50"] / row["time_us"]["p50"]
                known = f" ({share:.2f})" if means else ""
                cells.append(f"{bits * row['busbw_gbps']:.2f}{known}")
        table.append([*cells, f"{bits * limit['bandwidth_gbps']:.2f}" if means else ""])
    said = f"Bus bandwidths; in brackets the share of what {of} allows, measured in the same run."
    return ["", *_table(head, table), "", said]


# ---- selection


def _selection(result: Row) -> list[str]:
    lines: list[str] = []
    for op in dict.fromkeys(row["op"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["op"] == op]
        table = []
        for row in rows:
            times = row["time_us"]
            cells = [_size(row["bytes"]), row["chosen"], f"{times['auto']:.1f}", row["best"]]
            cells += [f"{times[row['best']]:.1f}", f"{row['auto_to_best']:.2f}"]
            table.append([*cells, f"{row['predicted_us']:.1f}", f"{row['predicted_to_auto']:.2f}"])
        head = ["bytes", "chosen", "auto, µs", "best forced", "best, µs", "auto / best"]
        head += ["predicted, µs", "predicted / auto"]
        lines += [f"## {op}, {rows[0]['dtype']}", "", *_table(head, table), ""]
    return [*lines, "Times: median of the worst rank. auto: the call that names no algorithm."]


# ---- training


def _training(result: Row) -> list[str]:
    lines: list[str] = []
    for model in dict.fromkeys(row["model"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["model"] == model]
        medians = {row["impl"]: row["step_ms"]["p50"] for row in rows}
        names = list(medians)
        table = []
        for row in rows:
            ratios = (f"{row['step_ms']['p50'] / medians[name]:.3f}" for name in names)
            peak = f"{row['peak_mb']:.0f}" if "peak_mb" in row else ""
            table.append([row["impl"], _spread(row["step_ms"], 2), peak, *ratios])
        head = ["step", "ms", "MB at most", *(f"/ {name}" for name in names)]
        lines += [f"## {model}", "", *_table(head, table), ""]
        unequal = [row["impl"] for row in rows if row["equal"] is False]
        lines += [f"RANKS DIFFER after {', '.join(unequal)}.", ""] if unequal else []
    return [
        *lines,
        "Times: median (p5 to p95) of the worst rank. MB: per rank at the height of a step, "
        "model and optimizer included. Other columns: times as long as the one named.",
    ]


# ---- Markdown


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_row(head), _row(["---", *["---:"] * (len(head) - 1)]), *map(_row, rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(times: dict[str, float], digits: int) -> str:
    return f"{times['p50']:.{digits}f} ({times['p5']:.{digits}f} to {times['p95']:.{digits}f})"


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**"


def _size(size: int) -> str:
    for shift, unit in ((30, "G"), (20, "M"), (10, "K")):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift} {unit}"
    return str(size)
