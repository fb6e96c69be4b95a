"""Which algorithm a call takes, and why: `comm.explain("all_reduce", 1 << 20)`.

The choice: what the call names, else what `PYCOMM_ALGO` names, else the cheapest of the algorithms that serve
the call, by the times that `python -m pycomm.tune` measured where there are some for such a group, and by a
model of their plans otherwise (csrc/plan/cost.h).
"""

from __future__ import annotations

from dataclasses import dataclass

from pycomm import _core
from pycomm.tensors import DTYPES


@dataclass(frozen=True)
class Candidate:
    """One algorithm for a call."""

    name: str
    refused: str  # why it cannot serve the call, or is not preferred; empty: it competes
    model_s: float  # what the model predicts; 0 where it cannot serve
    table_s: float  # what was measured; 0: nothing was


@dataclass(frozen=True)
class Explanation:
    """How the algorithm of a call is chosen. `str()` of it is for people."""

    collective: str
    nbytes: int
    dtype: str
    codec: str
    ranks: int
    algorithm: str
    by: str  # "the call", "PYCOMM_ALGO", "table" or "model"
    predicted_s: float  # 0 where the algorithm cannot serve the call
    segment_bytes: int
    transports: dict[str, int]  # pairs of ranks by kind of link
    candidates: tuple[Candidate, ...]

    def __str__(self) -> str:
        wire = "" if self.codec == "none" else f" with {self.codec}"
        pairs = ", ".join(f"{kind} ({count} pairs)" for kind, count in self.transports.items())
        lines = [
            f"{self.collective} of {shown_bytes(self.nbytes)}, {self.dtype}{wire}, on {self.ranks} ranks: "
            f"{self.algorithm}, by {self.by}",
            f"  transports  {pairs or 'none'}",
            f"  segments    {shown_bytes(self.segment_bytes)}",
            f"  predicted   {_shown_time(self.predicted_s)}",
        ]
        for i, one in enumerate(sorted(self.candidates, key=_cost)):
            times = f"{_shown_time(one.table_s or one.model_s):>10}"
            if one.table_s:
                times += f" measured (model {_shown_time(one.model_s)})"
            lines.append(
                f"  {'candidates' if i == 0 else '':10}  {one.name:20}"
                + (f"          - {one.refused}" if one.refused else times)
            )
        return "\n".join(lines)


def explain(
    core: _core.Communicator,
    collective: str,
    nbytes: int,
    dtype: str,
    codec: str,
    uneven: bool,
    algorithm: str,
    order: str,
) -> Explanation:
    """How such a call is served on this communicator. Local."""
    facts = _core.explain(core, collective, nbytes, DTYPES[dtype], codec, uneven, algorithm, order)
    return Explanation(
        collective,
        nbytes,
        dtype,
        codec or "none",
        core.size,
        facts["algorithm"],
        facts["by"],
        facts["seconds"],
        core.segment_bytes,
        _core.group_facts(core)["pairs"],
        tuple(Candidate(*row) for row in facts["candidates"]),
    )


def shown_bytes(count: int) -> str:
    """1536 as "1.5K": powers of 1024."""
    for unit, size in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return f"{count} bytes"


def _cost(one: Candidate) -> tuple[bool, float]:
    return bool(one.refused), one.table_s or one.model_s


def _shown_time(seconds: float) -> str:
    return f"{seconds * 1e6:.4g} us" if seconds < 1e-2 else f"{seconds * 1e3:.4g} ms"
