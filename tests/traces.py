"""Reads a trace file, and refuses one that a viewer would show wrongly."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Slice:
    """A span or an operation; times in nanoseconds on the trace's clock."""

    rank: int
    thread: str
    name: str
    begin: int
    end: int
    args: dict[str, Any]
    started: int = 0  # of an operation


class TraceFile:
    def __init__(self, path: Path) -> None:
        content = json.loads(path.read_text())
        self.facts = {fact["rank"]: fact for fact in content["otherData"]["ranks"]}
        events = content["traceEvents"]
        named = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
        self.processes = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
        self.labels = {e["pid"]: e["args"]["labels"] for e in events if e["name"] == "process_labels"}
        self.threads = {rank: [n for (pid, _), n in named.items() if pid == rank] for rank in self.processes}
        assert {e["ph"] for e in events} <= {"M", "X", "b", "e"}
        for event in events:
            assert event["ph"] == "M" or (event["pid"], event["tid"]) in named, event
        self.spans = [_span(e, named) for e in events if e["ph"] == "X"]
        self.operations = _operations([e for e in events if e["ph"] in "be"], named)
        _check_nesting(self.spans)

    def span(self, rank: int, name: str) -> list[Slice]:
        return [s for s in self.spans if (s.rank, s.name) == (rank, name)]

    def collectives(self) -> dict[tuple[Any, ...], list[Slice]]:
        """The ranks' sides of each collective."""
        out = defaultdict(list)
        for operation in self.operations:
            if "peer" not in operation.args:
                names = ("collective", "communicator", "sequence", "count", "algorithm")
                out[tuple(operation.args[name] for name in names)].append(operation)
        return out


def _ns(microseconds: float) -> int:
    return round(microseconds * 1000)


def _span(event: dict[str, Any], named: dict[tuple[int, int], str]) -> Slice:
    begin = _ns(event["ts"])
    end = begin + _ns(event["dur"])
    assert end >= begin, event
    return Slice(event["pid"], named[event["pid"], event["tid"]], event["name"], begin, end, event["args"])


def _operations(events: list[dict[str, Any]], named: dict[tuple[int, int], str]) -> list[Slice]:
    """Each is an outer slice with one, "queued", in it, closed in order."""
    by_id = defaultdict(list)
    for event in events:
        by_id[event["pid"], event["cat"], event["id2"]["local"]].append(event)
    out = []
    for (rank, category, _), marks in by_id.items():
        assert category == "operation" and [mark["ph"] for mark in marks] == list("bbee"), marks
        outer, queued, started, finished = marks
        assert outer["name"] == finished["name"] and queued["name"] == started["name"] == "queued", marks
        times = [_ns(mark["ts"]) for mark in marks]
        assert times == sorted(times) and times[0] == times[1], marks
        thread = named[rank, outer["tid"]]
        out.append(Slice(rank, thread, outer["name"], times[0], times[3], outer["args"], started=times[2]))
    return out


def _check_nesting(spans: list[Slice]) -> None:
    """Spans of a thread lie within each other or apart."""
    rows = defaultdict(list)
    for span in spans:
        rows[span.rank, span.thread].append(span)
    for row in rows.values():
        open_spans: list[Slice] = []
        for span in sorted(row, key=lambda s: (s.begin, -s.end)):
            while open_spans and open_spans[-1].end <= span.begin:
                open_spans.pop()
            assert not open_spans or span.end <= open_spans[-1].end, (open_spans[-1], span)
            open_spans.append(span)
