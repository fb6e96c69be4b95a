"""What a run would need, before it is started: `fit --dry_run --ranks N`. No MPI, no training, no files.

The run is prepared as `fit` prepares it, by one rank with the share of rank 0. The bytes of a codec are those
that the engine counts in a small all_reduce between two threads; the optimizer's state is measured on a
parameter of a few elements. The ring's traffic is its theory, (N-1)/N for the average rank of what is reduced
or gathered, 2(N-1)/N of what is both (Patarasuk and Yuan 2009), which the engine's own count equals. Not in
it: activations, and the few bytes of loss and flags that travel beside the gradients.
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
from trainer import exact as exact_mode
from trainer.block_layout import block_layout, block_nbytes
from trainer.blocks import partition
from trainer.config import FitConfig
from trainer.errors import TrainerError
from trainer.exact import cuts
from trainer.gradients import slots_of
from trainer.layout import shard_layout
from trainer.memory import POOL, PROBE, STRATEGIES, Held, estimate, peak_rss_bytes, state_bytes
from trainer.optimizers import maker
from trainer.preparation import Run, prepare
from trainer.room import advice, available_bytes
from trainer.sampler import own_shards

RANKS = (1, 2, 4, 8)  # for which memory is shown, besides those asked for
LIMIT_S = 3600  # for the data and the model


def dry_run(config: FitConfig, ranks: int, form: Literal["table", "json"] = "table") -> str:
    """The needs of a run of `ranks` ranks, for people or as JSON. Raises TrainerError as the run would."""
    facts = needs(config, ranks)
    if form == "json":
        return json.dumps(facts, indent=2)
    (held,) = [held for held in facts["held_by_ranks"] if held["ranks"] == ranks]
    by_strategy = {name: held[name] for name in STRATEGIES}
    return f"{_table(facts)}\n{advice(by_strategy, ranks, peak_rss_bytes(), available_bytes())}."


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
    replicated = replace(config, strategy="data_parallel", strategy_options={}, exact=False, shards=None)
    run = run_threads(1, lambda comm: prepare(replicated, comm, ranks), timeout=LIMIT_S)[0]
    exact = exact_mode.of(config)
    if exact:
        exact.check_ranks(ranks)
        exact_mode.check_model(run.model)
    model, bucket_bytes = run.model, int(config.bucket_mb * 2**20)
    run.strategy.close()  # the optimizer holds the model's parameters then
    slots = slots_of(model, run.optimizer)
    chosen = config.strategy_options.get("blocks")
    places = [slot.place for slot in slots]
    if config.strategy == "data_parallel" and exact is None:
        _, sizes, dtypes = layout(places, bucket_bytes)
    else:
        owners = 1 if config.strategy == "data_parallel" else ranks
        blocks = partition(model, chosen) if config.strategy == "zero3" else None
        if blocks:
            shards = block_layout(blocks, slots, ranks, exact)
        else:
            shards = shard_layout(places, owners, bucket_bytes, **cuts(exact))
        sizes, dtypes = shards.sizes, shards.dtypes
    make = maker(config.optimizer, config.lr, config.optimizer_options)
    state = state_bytes(make, slots, masters=config.wire().master_weights)
    pool = config.strategy_options.get("pool", POOL)
    shared = config.strategy_options.get("share_params", False)

    def held(strategy: str, count: int) -> Held:
        return estimate(
            strategy,
            model,
            slots,
            state,
            count,
            bucket_bytes,
            pool,
            shared=shared,
            exact=exact,
            blocks=chosen,
        )

    reductions, passes = _rounds(config, exact.shards // ranks if exact else None)
    payload = {codec: _payload_bytes(sizes, dtypes, codec, reductions) for codec in pycomm.info()["codecs"]}
    nbytes = sum(size * _itemsize(dtype) for size, dtype in zip(sizes, dtypes, strict=True))
    if config.strategy == "zero3":
        root, *others = map(sum, block_nbytes(partition(model, chosen), slots, ranks, exact))
        gathers, gathered = 2 * passes, passes * (root + 2 * sum(others))
    else:
        gathers, gathered = (0, 0) if shared else (1, nbytes)
    replicas = config.strategy == "data_parallel"  # their sums are gathered, in their codec

    def ring_bytes(sent: int) -> float:
        return (ranks - 1) / ranks * (sent + (sent if replicas else gathered))

    return {
        "ranks": ranks,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes_per_rank": asdict(held(config.strategy, ranks)),
        "held_by_ranks": [
            {"ranks": count, **{name: held(name, count).total for name in STRATEGIES}}
            for count in sorted({*RANKS, ranks})
            if exact is None or exact.shards % count == 0
        ],
        **_samples(run, config, ranks, exact.shards if exact else None),
        "buckets": [
            {"elements": size, "dtype": dtype, "bytes": size * _itemsize(dtype)}
            for size, dtype in zip(sizes, dtypes, strict=True)
        ],
        "payload_bytes": payload,
        "ring_bytes_per_rank": {
            codec: None if sent is None else ring_bytes(sent) for codec, sent in payload.items()
        },
        "ring_stages": (reductions + gathers) * (ranks - 1),
    }


def _rounds(config: FitConfig, own_shards: int | None) -> tuple[int, int]:
    """How often a step reduces all gradients, and how many forwards and backwards it has. `own_shards`: those
    of a rank in exact mode, which adds up their gradients before they are reduced."""
    if own_shards is not None:
        return 1, own_shards
    return config.accumulate if config.strategy in ("zero2", "zero3") else 1, config.accumulate


def _samples(run: Run, config: FitConfig, ranks: int, shards: int | None) -> dict[str, Any]:
    batch, parts = run.source.global_batch, shards or ranks
    sizes = [len(part) for part in np.array_split(np.empty(batch), parts)]
    shares = {sum(sizes[shard] for shard in own_shards(parts, rank, ranks)) for rank in range(ranks)}
    return {
        "global_batch": batch,
        "samples_per_rank": sorted(shares),
        "steps_per_epoch": run.source.steps_per_epoch,
        "steps": run.steps,
    }


def _payload_bytes(sizes: Iterable[int], dtypes: Iterable[str], codec: str, times: int) -> int | None:
    """The wires of all buckets, so many times; None where the codec does not serve a dtype."""
    wires = zip(sizes, dtypes, strict=True)
    try:
        return times * sum(round(size * _wire_bytes(dtype, codec)) for size, dtype in wires)
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
