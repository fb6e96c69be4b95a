"""10⁶ parameters on 100 ranks: what a dry run announces, and what the engine counts when they train.

1024·659 + 659 + 659·488 + 488 + 488·5 + 5 = 1,000,000. Gradients start at multiples of 64 elements of their
bucket, which makes 1,000,192. In the ring of N ranks each sends every Nth of the bucket but its own, then
every one but its successor's: together 2(N-1) buckets, exactly; the average rank 2(N-1)/N of one.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pycomm import Communicator
from pycomm.testing import run_threads
from tests.seeds.table import Table
from trainer import MODELS, DataParallel
from trainer.__main__ import main
from trainer.state import parameters_sha256

RANKS, PADDED = 100, 1_000_192
SAMPLES, STEPS, RATE = 200, 2, 0.5
DRY_RUN = (
    "fit --plugin [tests.seeds.random_labels] --data random_labels --data_options.count 12800"
    " --data_options.inputs 1024 --data_options.classes 5 --model mlp --model_options.hidden [659,488]"
    f" --batch_per_rank 128 --dry_run --ranks {RANKS}"
)


def test_a_dry_run_announces_the_traffic(capsys: pytest.CaptureFixture[str], table: Table) -> None:
    main(DRY_RUN.split())
    lines = [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()]
    said = {name: cells for name, *cells in lines}
    payload, traffic = (
        dict(zip(said["codec"], said[name], strict=True))
        for name in ("payload per step", "ring traffic per rank")
    )
    table.equal("parameters", "1,000,000", *said["parameters"], ranks=RANKS)
    table.equal("payload, fp16", "2.00 MB", payload["fp16"], ranks=RANKS)
    table.equal("ring traffic per rank and step, fp16", "3.96 MB", traffic["fp16"], ranks=RANKS)
    table.equal("ring traffic per rank and step, fp32", "7.92 MB", traffic["none"], ranks=RANKS)
    table.equal("ring stages", "198 per bucket", *said["ring stages"], ranks=RANKS)
    assert said["samples"] == ["global batch 12,800, 128 per rank and step"]


@dataclass(frozen=True)
class Step:
    """All parameters before it, and the gradients that all ranks got."""

    before: Tensor
    gradient: Tensor


def network() -> nn.Module:
    torch.manual_seed(7)
    return MODELS.build("mlp", inputs=1024, outputs=5, hidden=[659, 488])


Parts = list[tuple[Tensor, Tensor]]


def two_samples_each() -> Parts:
    """The traffic does not depend on the batch."""
    random = torch.Generator().manual_seed(70)
    inputs = torch.randn(SAMPLES, 1024, generator=random)
    labels = torch.randint(5, (SAMPLES,), generator=random)
    return list(zip(inputs.tensor_split(RANKS), labels.tensor_split(RANKS), strict=True))


def backward(model: nn.Module, inputs: Tensor, labels: Tensor) -> None:
    functional.cross_entropy(model(inputs), labels, reduction="sum").backward()


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def train(
    comm: Communicator, initial: nn.Module, parts: Parts, codec: str
) -> tuple[list[int], list[Step], str]:
    """This rank's bytes by step, rank 0's steps, and a hash of the parameters in the end."""
    model = copy.deepcopy(initial)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=RATE)
    sent, steps = [], []
    with DataParallel(
        model, comm, optimizer, loss_reduction="sum", global_count=SAMPLES, codec=codec
    ) as parallel:
        for _ in range(STEPS):
            before = flat(parameters) if comm.rank == 0 else None
            optimizer.zero_grad()
            backward(model, *parts[comm.rank])
            optimizer.step()
            sent.append(parallel.bytes_sent)
            if before is not None:
                steps.append(Step(before, flat([parameter.grad for parameter in parameters])))
    return sent, steps, parameters_sha256(model)


def exact_gradient(model: nn.Module, parts: Parts, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """One process: the ranks' gradients added in float64, and their absolute values; over the samples."""
    nn.utils.vector_to_parameters(parameters, model.parameters())
    total, magnitude = torch.zeros(2, len(parameters), dtype=torch.float64)
    for inputs, labels in parts:
        model.zero_grad()
        backward(model, inputs, labels)
        gradient = flat([parameter.grad for parameter in model.parameters()]).double()
        total += gradient
        magnitude += gradient.abs()
    return total / SAMPLES, magnitude / SAMPLES


# A sum of N terms in a ring is rounded at most N + 1 times (each hop, scale or first cast, last cast), each
# time by a relative u or, where the result is subnormal, by half of the smallest number.
ROUNDING = {"none": (4, 2.0**-24, 2.0**-150), "fp16": (2, 2.0**-11, 2.0**-25)}  # wire bytes, u, least


@pytest.mark.parametrize("codec", ROUNDING)
def test_a_hundred_ranks_send_what_theory_says_and_train(
    codec: str, table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYCOMM_ALGO", "all_reduce:ring")
    wire_bytes, unit, least = ROUNDING[codec]
    initial, parts = network(), two_samples_each()
    results = run_threads(RANKS, train, initial, parts, codec, transport="inproc")
    name = {"none": "fp32"}.get(codec, codec)

    chunks = [len(chunk) for chunk in np.array_split(np.empty(PADDED), RANKS)]
    by_rank = [(2 * PADDED - chunks[r] - chunks[(r + 1) % RANKS]) * wire_bytes for r in range(RANKS)]
    assert [sent for sent, _, _ in results] == [[count] * STEPS for count in by_rank]
    counted = sum(sent[0] for sent, _, _ in results)
    table.equal(
        f"{name}: bytes of all ranks, counted", 2 * (RANKS - 1) * PADDED * wire_bytes, counted, ranks=RANKS
    )
    table.equal(f"{name}: different parameters", 1, len({sha256 for _, _, sha256 in results}), ranks=RANKS)

    model = copy.deepcopy(initial)
    for number, step in enumerate(results[0][1], start=1):
        expected, magnitude = exact_gradient(model, parts, step.before)
        bound = (RANKS + 1) * (1 + unit) ** RANKS * (unit * magnitude + least)
        worst = ((step.gradient.double() - expected).abs() / bound).max().item()
        table.at_most(f"{name}: step {number}, error / bound beside one process", 1.0, worst, ranks=RANKS)
    first, second = results[0][1]
    assert torch.equal(second.before, first.before - RATE * first.gradient)
