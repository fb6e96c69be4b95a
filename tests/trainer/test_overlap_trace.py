"""Overlap as a trace shows it: the first bucket is on its way before backward has made the last gradient."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pycomm import Communicator, trace_span
from pycomm.testing import run_threads
from tests.traces import TraceFile
from trainer import DataParallel, FitConfig, fit

LAYERS = 6


def _step(comm: Communicator, overlap: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(32, 32, bias=False) for _ in range(LAYERS)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # A bucket per layer; the first layer gets its gradient last.
    with DataParallel(model, comm, optimizer, overlap=overlap, bucket_bytes=1) as parallel:
        model[0].weight.register_post_accumulate_grad_hook(_marks_the_last_gradient)
        with trace_span("backward"):
            model(torch.ones(3, 32)).sum().backward()
        with trace_span("step"):
            optimizer.step()
        assert parallel.overlap == (overlap == "on")


def _marks_the_last_gradient(_: torch.Tensor) -> None:
    with trace_span("last gradient"):
        pass


@pytest.mark.parametrize("overlap", ["on", "off"])
def test_with_overlap_the_first_bucket_is_launched_before_the_last_gradient(
    overlap: str, tmp_path: Path
) -> None:
    run_threads(2, _step, overlap, progress="thread", trace=tmp_path / "trace.json")
    trace = TraceFile(tmp_path / "trace.json")
    for rank in range(2):
        buckets = {o.args["bucket"]: o for o in trace.operations if o.rank == rank and "bucket" in o.args}
        assert sorted(buckets) == list(range(LAYERS))
        assert all(o.name.startswith(f"all_reduce bucket {k} 4.1 kB ") for k, o in buckets.items())
        (backward,), (step,) = trace.span(rank, "backward"), trace.span(rank, "step")
        (last_gradient,) = trace.span(rank, "last gradient")
        if overlap == "on":
            assert backward.begin < buckets[0].begin < last_gradient.begin < backward.end
        else:
            assert all(step.begin <= bucket.begin for bucket in buckets.values())
        assert all(bucket.end <= step.end for bucket in buckets.values())


def test_the_command_line_writes_a_trace(environment: dict[str, str], tmp_path: Path) -> None:
    options = "fit --data linear --model linear --optimizer sgd --lr 0.01 --steps 2"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "trainer",
            *options.split(),
            "--out",
            tmp_path,
            "--trace",
            tmp_path / "t.json",
        ],
        env=environment,
        check=True,
        timeout=60,
    )
    trace = TraceFile(tmp_path / "t.json")
    assert trace.threads == {0: ["main"]} and len(trace.span(0, "backward")) == 2


def test_fit_shows_its_phases(tmp_path: Path) -> None:
    config = FitConfig(
        data="linear", model="linear", optimizer="sgd", lr=0.01, steps=3, eval_every=2, out=tmp_path / "run"
    )
    run_threads(2, lambda comm: fit(config, comm) and None, trace=tmp_path / "trace.json")
    trace = TraceFile(tmp_path / "trace.json")
    for rank in range(2):
        for phase in ("data", "forward", "backward", "step"):
            assert [span.args for span in trace.span(rank, phase)] == [{"step": n} for n in (1, 2, 3)], phase
        assert [span.args["step"] for span in trace.span(rank, "evaluate")] == [2, 3]
