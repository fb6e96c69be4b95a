"""What a run would need, before it is started: `fit --dry_run --ranks N`. No MPI, no training, no files.

The run is prepared as `fit` prepares it, by one rank with the share of rank 0. The bytes of a codec are those
that the engine counts in a small all_reduce between two threads; the optimizer's state is measured on a
parameter of a few elements. The ring's traffic is its theory, 2(N-1)/N of the payload for the average rank
(Patarasuk and Yuan 2009), which the engine's own count equals. Not in it: activations, and the few bytes of
loss and flags that travel beside the gradients.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import torch

import pycomm
from pycomm.buckets import layout
from pycomm.testing import run_threads
from trainer.config import FitConfig
from trainer.errors import TrainerError
from trainer.gradients import slots_of
from trainer.layout import shard_layout
from trainer.memory import POOL, PROBE, STRATEGIES, Held, estimate, state_bytes
from trainer.optimizers import maker
from trainer.preparation import Run, prepare

RANKS = (1, 2, 4, 8)  # for which memory is shown, besides those asked for
LIMIT_S = 3600  # for the data and the model


def dry_run(config: FitConfig, ranks: int, form: Literal["table", "json"] = "table") -> str:
    """The needs of a run of `ranks` ranks, for people or as JSON. Raises TrainerError as the run would."""
    facts = needs(config, ranks)
    return json.dumps(facts, indent=2) if form == "json" else _table(facts)


def needs(config: FitConfig, ranks: int) -> dict[str, Any]:
    """The same as numbers: bytes, elements, samples. Of the ranks, the average one where they differ."""
    config.check()
    if ranks < 1:
        raise TrainerError(f"ranks: expected 1 or more, got {ranks}")
    if config.strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise TrainerError(f"dry_run knows what {known} need, not strategy {config.strategy!r}")
    if config.data_local:
        raise TrainerError("dry_run looks at one rank's data: with data_local the others' decide too")
    replicated = replace(config, strategy="data_parallel", strategy_options={})
    run = run_threads(1, lambda comm: prepare(replicated, comm, ranks), timeout=LIMIT_S)[0]
    model, bucket_bytes = run.model, int(config.bucket_mb * 2**20)
    slots = slots_of(model, run.optimizer)
    if config.strategy == "data_parallel":
        _, sizes, dtypes = layout([slot.place for slot in slots], bucket_bytes)
    else:
        shards = shard_layout([slot.place for slot in slots], ranks, bucket_bytes)
        sizes, dtypes = shards.sizes, shards.dtypes
    state = state_bytes(maker(config.optimizer, config.lr, config.optimizer_options), slots)
    pool = config.strategy_options.get("pool", POOL)
    shared = config.strategy_options.get("share_params", False)

    def held(strategy: str, count: int) -> Held:
        return estimate(strategy, model, slots, state, count, bucket_bytes, pool, shared=shared)

    payload = {codec: _payload_bytes(sizes, dtypes, codec) for codec in pycomm.info()["codecs"]}
    return {
        "ranks": ranks,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes_per_rank": asdict(held(config.strategy, ranks)),
        "held_by_ranks": [
            {"ranks": count, **{name: held(name, count).total for name in STRATEGIES}}
            for count in sorted({*RANKS, ranks})
        ],
        **_samples(run, config, ranks),
        "buckets": [
            {"elements": size, "dtype": dtype, "bytes": size * _itemsize(dtype)}
            for size, dtype in zip(sizes, dtypes, strict=True)
        ],
        "payload_bytes": payload,
        "ring_bytes_per_rank": {
            codec: None if sent is None else 2 * (ranks - 1) / ranks * sent for codec, sent in payload.items()
        },
        "ring_stages": 2 * (ranks - 1),
    }


def _samples(run: Run, config: FitConfig, ranks: int) -> dict[str, Any]:
    batch = run.source.global_batch
    shares = {len(part) for part in np.array_split(np.empty(batch), ranks)}
    return {
        "global_batch": batch,
        "samples_per_rank": sorted(shares),
        "steps_per_epoch": run.source.steps_per_epoch,
        "steps": run.steps,
    }


def _payload_bytes(sizes: Iterable[int], dtypes: Iterable[str], codec: str) -> int | None:
    """The wires of all buckets; None where the codec does not serve a dtype."""
    try:
        return sum(round(size * _wire_bytes(dtype, codec)) for size, dtype in zip(sizes, dtypes, strict=True))
    except pycomm.InvalidArgument:
        return None


@cache
def _wire_bytes(dtype: str, codec: str) -> float:
    """Bytes per element on the wire. In a ring of two, the ranks together send two vectors."""

    def rank(comm: pycomm.Communicator) -> int:
        probe = torch.zeros(PROBE, dtype=getattr(torch, dtype))
        work = comm.all_reduce_async(probe, codec=codec, algorithm="ring")
        work.wait()
        return work.bytes_sent

    return sum(run_threads(2, rank, transport="inproc")) / (2 * PROBE)


def _itemsize(dtype: str) -> int:
    return int(getattr(torch, dtype).itemsize)


# ---- for people


def _table(facts: dict[str, Any]) -> str:
    parameters, held = facts["parameters"], facts["bytes_per_rank"]
    per_parameter = ", ".join(f"{what} {count / parameters:.2f}" for what, count in held.items())
    shares = " or ".join(map(str, facts["samples_per_rank"]))
    codecs = list(facts["payload_bytes"])
    return "\n".join(
        [
            f"{'ranks':<24}{facts['ranks']:,}",
            f"{'parameters':<24}{parameters:,}",
            f"{'held per rank':<24}{_size(sum(held.values()))}; bytes per parameter: {per_parameter}",
            *_memory(facts["held_by_ranks"]),
            f"{'samples':<24}global batch {facts['global_batch']:,}, {shares} per rank and step",
            f"{'steps':<24}{facts['steps']:,}, {_epoch(facts['steps_per_epoch'])}",
            f"{'buckets':<24}{_buckets(facts['buckets'])}",
            f"{'ring stages':<24}{facts['ring_stages']:,} per bucket",
            "",
            _row("codec", codecs),
            _row("payload per step", map(_size, facts["payload_bytes"].values())),
            _row("ring traffic per rank", map(_size, facts["ring_bytes_per_rank"].values())),
            "",
            "kB are 10^3 bytes, MB 10^6. Traffic is what a rank sends per step, and what it receives.",
        ]
    )


def _epoch(steps: int | None) -> str:
    return "of a stream" if steps is None else f"{steps:,} per epoch"


def _memory(held_by_ranks: list[dict[str, int]]) -> list[str]:
    """By strategy and number of ranks."""
    heads = [f"{held['ranks']:,} rank{'s' * (held['ranks'] > 1)}" for held in held_by_ranks]
    totals = {name: [_size(held[name]) for held in held_by_ranks] for name in STRATEGIES}
    return [_row("  with strategy", heads), *(_row(f"    {name}", cells) for name, cells in totals.items())]


def _row(name: str, cells: Iterable[str]) -> str:
    return f"{name:<24}" + "".join(f"{cell:>12}" for cell in cells)


def _buckets(buckets: list[dict[str, Any]]) -> str:
    shown = [_size(bucket["bytes"]) for bucket in buckets[:8]]
    return f"{len(buckets):,}: {', '.join(shown)}{', …' if len(buckets) > len(shown) else ''}"


def _size(count: float | None) -> str:
    if count is None:
        return "refused"
    return f"{count / 1e6:,.2f} MB" if count >= 1e6 else f"{count / 1e3:,.2f} kB"
