"""Pictures of results: of collectives bus bandwidth and time over size, of training steps time and memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def draw(result: Row, path: Path) -> None:
    """Writes an SVG of a result, of a bench that DRAWINGS names. Raises ModuleNotFoundError where matplotlib
    is missing."""
    import matplotlib

    matplotlib.use("Agg")
    # Text as text, and the same bytes for the same numbers.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pycomm"}):
        from matplotlib import pyplot

        figure = DRAWINGS[result["bench"]](result, pyplot)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def _collectives(result: Row, pyplot: Any) -> Any:
    operations = list(dict.fromkeys(row["op"] for row in result["rows"] if row["bytes"]))
    figure, panels = pyplot.subplots(
        len(operations), 2, figsize=(11, 4 * len(operations)), squeeze=False, layout="constrained"
    )
    for operation, (left, right) in zip(operations, panels, strict=True):
        rows = [row for row in result["rows"] if row["op"] == operation]
        for name in dict.fromkeys(row["impl"] for row in rows):
            mine = [row for row in rows if row["impl"] == name]
            sizes = [row["bytes"] for row in mine]
            left.plot(sizes, [row["busbw_gbps"] for row in mine], marker=".", label=name)
            right.plot(sizes, [row["time_us"]["p50"] for row in mine], marker=".", label=name)
        limits = [row for row in result["roofline"] if row["op"] == operation]
        label = f"at the least, by {limits[0].get('of', 'memory')}"
        sizes, least = [row["bytes"] for row in limits], [row["time_us"]["p50"] for row in limits]
        right.plot(sizes, least, color="grey", linestyle=":", label=label)
        left.set_ylabel("bus bandwidth, GB/s")
        right.set_ylabel("median time, µs")
        right.set_yscale("log")
        left.legend()
        right.legend()
        for panel in (left, right):
            panel.set_title(f"{operation}; ranks: {result['ranks']}, nodes: {result['nodes']}")
            panel.set_xscale("log", base=2)
            panel.set_xlabel("bytes")
            panel.grid(alpha=0.3)
    return figure


def _training(result: Row, pyplot: Any) -> Any:
    """A bar for each step, from fastest to slowest; whiskers are the 5th and 95th percentiles."""
    models = list(dict.fromkeys(row["model"] for row in result["rows"]))
    most = max(sum(row["model"] == model for row in result["rows"]) for model in models)
    figure, panels = pyplot.subplots(
        len(models), 2, figsize=(11, (1.2 + 0.35 * most) * len(models)), squeeze=False, layout="constrained"
    )
    for model, (left, right) in zip(models, panels, strict=True):
        rows = [row for row in result["rows"] if row["model"] == model]
        rows.sort(key=lambda row: row["step_ms"]["p50"])
        names, times = [row["impl"] for row in rows], [row["step_ms"] for row in rows]
        alone = next((row["step_ms"]["p50"] for row in rows if row["impl"] == "none"), None)
        colours = ["grey" if name == "none" else "C0" if _ours(name) else "C1" for name in names]
        middles = [time["p50"] for time in times]
        spread = [[time["p50"] - time["p5"] for time in times], [time["p95"] - time["p50"] for time in times]]
        left.barh(names, middles, xerr=spread, color=colours, error_kw={"elinewidth": 1, "alpha": 0.6})
        right.barh(names, [row.get("peak_mb", 0) for row in rows], color=colours)
        for place, row in enumerate(rows):
            ratio = f", {row['step_ms']['p50'] / alone:.2f} of none" if alone else ""
            said = f" {row['step_ms']['p50']:.1f}{ratio}"
            left.annotate(said, (0, place), va="center", color="white", fontsize="small")
            right.annotate(
                f" {row.get('peak_mb', 0):.0f}", (0, place), va="center", color="white", fontsize="small"
            )
        for panel in (left, right):
            panel.invert_yaxis()
            panel.grid(axis="x", alpha=0.3)
        left.set(
            xlabel="ms per step, median",
            title=f"{model}, {rows[0].get('optimizer', 'sgd')}; ranks: {result['ranks']}",
        )
        right.set(xlabel="MB per rank at the height of a step", title="memory")
    figure.supxlabel("grey: no communication; blue: over pycomm; orange: over gloo", fontsize="small")
    return figure


def _ours(name: str) -> bool:
    return "gloo" not in name


# By bench; the results of others are tables alone.
DRAWINGS: dict[str, Callable[[Row, Any], Any]] = {"collectives": _collectives, "training": _training}
