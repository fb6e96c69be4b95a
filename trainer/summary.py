"""How a run is described: one line before it, summary.json after it."""

from __future__ import annotations

import platform
from typing import Any

import numpy
import torch

import pycomm
from pycomm import Communicator
from trainer.config import FitConfig
from trainer.gradients import slots_of
from trainer.memory import peak_rss_bytes, per_parameter, state_bytes
from trainer.metrics import Metrics
from trainer.optimizers import maker
from trainer.preparation import Run
from trainer.rows import SPLIT_OF
from trainer.state import check_equal, parameters_sha256
from trainer.weights import BEST


def headline(config: FitConfig, comm: Communicator, run: Run) -> str:
    ranks = f"{comm.size} rank{'s' * (comm.size > 1)}"
    source, dataset = run.source, run.dataset
    study = f", gradients: {config.grad_reduction}" * (config.grad_reduction != "global_mean")
    watched = "validation" if dataset.validation else "test (there is no validation split)"
    watches = f"; watching {watched}" * bool(config.evaluation_steps_for(source.steps_per_epoch))
    exact = f", exact over {run.exact.shards} shards" if run.exact else ""
    return (
        f"{config.model} on {config.data}, {config.strategy}{study}{exact}, {ranks} over {comm.transport}, "
        f"codec {config.codec}, {config.precision}, {torch.get_num_threads()} threads per rank; "
        f"{_batch(config, comm.size, run)}, "
        f"{run.steps} steps of {source.steps_per_epoch or 'a stream, not'} per epoch{watches}"
    )


def _batch(config: FitConfig, size: int, run: Run) -> str:
    batch, samples = run.source.global_batch, run.source.samples
    shares = sorted({len(part) for part in numpy.array_split(numpy.empty(batch), size)})
    per_rank = f"{' or '.join(map(str, shares))} per rank"
    if run.spread:
        per_rank = (
            f"of {' + '.join('?' if own is None else str(own) for own in run.spread['samples'])} samples, "
            "which stay on their ranks"
        )
    asked = config.global_batch_for(size)
    if samples is not None and asked > samples:
        return f"batch {asked} > dataset of {samples}: global batch {samples} ({per_rank})"
    return f"global batch {batch} ({per_rank})"


def summary(
    config: FitConfig, run: Run, metrics: Metrics, comm: Communicator, held: dict[str, int] | None
) -> dict[str, Any]:
    """`held`: bytes of memory. Raises CollectiveError if ranks hold different parameters. Collective."""
    param_sha256 = parameters_sha256(run.model)
    check_equal(param_sha256, comm, "the trained parameters")
    best = run.validation.stopping.best
    return {
        "strategy": config.strategy,
        "world_size": comm.size,
        "steps": metrics.rows[-1]["step"],
        "ended": run.validation.ended,
        "best": best and {"step": best[0], "validation_loss": best[1], "weights": BEST},
        "params": sum(parameter.numel() for parameter in run.model.parameters()),
        "loss_first": metrics.rows[0]["loss"],
        "loss_last": metrics.rows[-1]["loss"],
        **{key: metrics.rows[-1].get(key) for key in SPLIT_OF},
        "memory": held and _memory(held, config, run, comm.size),
        "peak_rss_bytes": int(comm.all_reduce(numpy.array([peak_rss_bytes()]), op="max")[0]),
        **metrics.timing(),
        "param_sha256": param_sha256,
        "data_sha256": run.data_sha256,
        **({"data_local": run.spread} if run.spread else {}),
        "transport": comm.transport,
        "codec": config.codec,
        "shards": run.exact.shards if run.exact else None,
        "precision": config.precision,
        "skipped_steps": 0 if run.precision.scaler is None else run.precision.scaler.skipped,
        "versions": _versions(),
    }


def _memory(held: dict[str, int], config: FitConfig, run: Run, ranks: int) -> dict[str, Any]:
    """What the rank with the most holds, beside what the formula says."""
    slots = slots_of(run.model, None)
    make = maker(config.optimizer, config.lr, config.optimizer_options)
    state = state_bytes(make, slots, masters=config.wire().master_weights)
    shared = config.strategy_options.get("share_params", False)
    count = sum(parameter.numel() for parameter in run.model.parameters())
    return {
        "bytes_per_rank": held,
        "bytes_per_parameter": sum(held.values()) / count,
        "formula": per_parameter(config.strategy, ranks, slots, state, shared=shared),
    }


def _versions() -> dict[str, str]:
    info = pycomm.info()
    return {
        "pycomm": info["pycomm"],
        "mpi": info["mpi"],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }
