"""Pictures of results: bus bandwidth and time over size, a row for each operation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Row = dict[str, Any]


def draw(result: Row, path: Path) -> None:
    """Writes an SVG of a result of `bench collectives`. Raises ModuleNotFoundError where matplotlib is
    missing."""
    import matplotlib

    matplotlib.use("Agg")
    # Text as text, and the same bytes for the same numbers.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pycomm"}):
        _draw(result, path)


def _draw(result: Row, path: Path) -> None:
    from matplotlib import pyplot

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
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
