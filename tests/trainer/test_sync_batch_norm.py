"""A synchronised BatchNorm is torch's of one process with all samples: outputs, gradients, statistics."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import (
    DATA,
    MODELS,
    DataParallel,
    FitConfig,
    SyncBatchNorm,
    TrainerError,
    Zero,
    convert_sync_batchnorm,
    fit,
)
from trainer.rows import read_rows
from trainer.sampler import Sampler

SHARES = [[10], [5, 5], [7, 3], [0, 10], [4, 0, 6], [1, 9, 0, 0]]  # samples by rank
CHANNELS = 3
SHAPES = {"1d": (), "1d, long": (4,), "2d": (4, 2), "3d": (2, 2, 3)}
KINDS = {"1d": nn.BatchNorm1d, "1d, long": nn.BatchNorm1d, "2d": nn.BatchNorm2d, "3d": nn.BatchNorm3d}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cumulative average": {"momentum": None},
    "without parameters": {"affine": False},
    "without statistics": {"track_running_stats": False},
}


def inputs(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Channels of different scale and mean."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(10, CHANNELS, *shape, generator=random)
    scale, shift = torch.tensor([1.0, 3.0, 0.5]), torch.tensor([0.0, 5.0, 1.0])
    by_channel = (1, CHANNELS, *[1] * len(shape))
    return x * scale.view(by_channel) + shift.view(by_channel)


def model_of(kind: str, options: dict[str, Any]) -> nn.Module:
    norm = KINDS[kind](CHANNELS, **options)
    if norm.affine:
        norm.weight.data, norm.bias.data = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.0, 1.0, 2.0])
    return nn.Sequential(norm)


def passes(model: nn.Module, parts: list[Tensor], slope: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    outputs, gradients = [], []
    for x, weights in zip(parts, slope, strict=True):
        x = x.clone().requires_grad_()
        y = model(x)
        (y.square() * weights).sum().backward()
        outputs.append(y.detach())
        gradients.append(x.grad)
    return outputs, gradients


def assert_near(got: Tensor, expected: Tensor, unit: float) -> None:
    """In the norm: single elements are differences of larger ones."""
    assert got.shape == expected.shape
    error = torch.linalg.vector_norm(got.double() - expected.double())
    assert error <= unit * torch.linalg.vector_norm(expected.double()), float(error)


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "dtype", "unit"),
    [(options, torch.float32, 1e-6) for options in OPTIONS.values()] + [({}, torch.float64, 1e-14)],
    ids=[*OPTIONS, "float64"],
)
def test_everything_is_that_of_the_whole_batch(
    options: dict, dtype: torch.dtype, unit: float, kind: str, shares: list[int]
) -> None:
    """Compared with torch's BatchNorm in float64."""
    steps = 2
    whole, slope = ([inputs(SHAPES[kind], first + step) for step in range(steps)] for first in (0, steps))
    expected = model_of(kind, options).double()
    outputs, gradients = passes(expected, [x.double() for x in whole], [x.double() for x in slope])
    original = model_of(kind, options).to(dtype)

    def rank(comm: Communicator) -> tuple[list[Tensor], list[Tensor], list[Tensor], dict[str, Tensor]]:
        model = copy.deepcopy(original)
        before = {name: id(parameter) for name, parameter in model.named_parameters()}
        assert convert_sync_batchnorm(model, comm) == 1
        assert isinstance(model[0], SyncBatchNorm)
        assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
        mine = [[part.split(shares)[comm.rank].to(dtype) for part in parts] for parts in (whole, slope)]
        ys, dxs = passes(model, *mine)
        return ys, dxs, [p.grad for p in model.parameters()], model.state_dict()

    results = run_threads(len(shares), rank)
    for step in range(steps):
        assert_near(torch.cat([result[0][step] for result in results]), outputs[step], unit)
        assert_near(torch.cat([result[1][step] for result in results]), gradients[step], unit)
    for index, parameter in enumerate(expected.parameters()):
        assert_near(sum(result[2][index] for result in results), parameter.grad, unit)
    for result in results:
        assert result[3].keys() == expected.state_dict().keys()
        for name, value in expected.state_dict().items():
            assert_near(result[3][name], value, unit)
        torch.testing.assert_close(result[3], results[0][3], rtol=0, atol=0)


def test_a_mean_that_is_large_against_its_spread_does_not_cost_the_variance() -> None:
    """In float32, a mean of squares less the square of the mean would be off by some per cent."""
    x = 1000 + torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))

    def rank(comm: Communicator) -> Tensor:
        model = model_of("1d", {"momentum": 1.0})
        convert_sync_batchnorm(model, comm)
        model(x.split([1000, 3000])[comm.rank])
        return model[0].running_var

    for got in run_threads(2, rank):
        assert_near(got, x.double().var(0), 1e-6)


def test_evaluation_is_torchs_and_does_not_communicate() -> None:
    expected = model_of("2d", {})
    passes(expected, [inputs((4, 2))], [inputs((4, 2))])
    expected.eval()

    def rank(comm: Communicator) -> None:
        model = copy.deepcopy(expected)
        convert_sync_batchnorm(model, comm)
        if comm.rank == 1:  # alone
            assert torch.equal(model(inputs((4, 2), 3)), expected(inputs((4, 2), 3)))

    run_threads(2, rank)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs_are_normalised_in_float32(dtype: torch.dtype) -> None:
    x = inputs((4, 2)).to(dtype)

    def rank(comm: Communicator) -> Tensor:
        model = model_of("2d", {})
        convert_sync_batchnorm(model, comm)
        y = model(x.split([7, 3])[comm.rank])
        y.sum().backward()
        assert y.dtype == dtype and model[0].weight.grad.dtype == torch.float32
        return y

    expected = model_of("2d", {})(x.float()).to(dtype)
    torch.testing.assert_close(
        torch.cat(run_threads(2, rank)), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-2
    )


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(1, 3), "expected more than 1 value per channel over all ranks"),
        (torch.ones(4, 2), r"expected \(samples, 3, ...\), got \(4, 2\)"),
    ],
)
def test_what_cannot_be_normalised_is_refused_on_all_ranks(x: Tensor, message: str) -> None:
    def rank(comm: Communicator) -> None:
        model = model_of("1d", {})
        convert_sync_batchnorm(model, comm)
        mine = x[:0] if len(x) == 1 and comm.rank else x
        with pytest.raises(ValueError, match=message):
            model(mine)

    run_threads(2, rank)


# ---- in training


class Norms(nn.Module):
    def __init__(self, inputs: int = 1, outputs: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, 6),
            nn.BatchNorm1d(6),
            nn.Tanh(),
            nn.Linear(6, 5),
            nn.BatchNorm1d(5),
            nn.Linear(5, outputs),
        )
        for parameter in self.parameters():
            values = torch.linspace(-1, 1, parameter.numel() + 1)[1:]
            parameter.data = values.view(parameter.shape) + 0.1

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


MODELS.register("test_norms")(Norms)
STRATEGIES = ("data_parallel", "zero1", "zero2")


def train(out: Path, ranks: int, strategy: str, **options: Any) -> tuple[list[float], dict[str, Tensor]]:
    settings = {
        "model": "test_norms", "optimizer": "sgd", "lr": 0.01, "global_batch": 10, "steps": 6, **options,
    }  # fmt: skip
    config = FitConfig(data="linear", strategy=strategy, threads=1, out=out, bucket_mb=1e-4, **settings)
    run_threads(ranks, lambda comm: fit(config, comm))
    losses = [row["loss"] for row in read_rows(out / "metrics.jsonl")]
    return losses, load_file(out / "model.safetensors")


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_is_that_of_one_process(strategy: str, ranks: int, tmp_path: Path) -> None:
    losses, weights = train(tmp_path / "whole", 1, "single")
    overlap = "off" if strategy == "zero1" else "on"
    got, its = train(tmp_path / "ranks", ranks, strategy, sync_batchnorm=True, overlap=overlap)
    assert got == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(its, weights, rtol=1e-3, atol=1e-4)


def test_without_it_the_run_is_another(tmp_path: Path) -> None:
    losses, _ = train(tmp_path / "whole", 1, "single")
    got, _ = train(tmp_path / "ranks", 3, "data_parallel")
    assert got != pytest.approx(losses, rel=1e-2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_rank_without_a_sample_takes_part(strategy: str, tmp_path: Path) -> None:
    expected, _ = train(tmp_path / "whole", 1, "single", global_batch=2)
    got, _ = train(tmp_path / "ranks", 4, strategy, global_batch=2, sync_batchnorm=True)
    assert got == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_micro_batches_are_normalised_each_over_all_ranks(strategy: str, tmp_path: Path) -> None:
    """Of ten samples on three ranks the micro-batches have 2 + 2 + 2 and 2 + 1 + 1; running means say so."""
    _, weights = train(
        tmp_path, 3, strategy, accumulate=2, sync_batchnorm=True, steps=1, lr=1e-12, clip_norm=1e-9
    )
    order = Sampler(len(DATA.build("linear", seed=0).train[0]), 10, 0).batch(0).indices
    x = DATA.build("linear", seed=0).train[0][order]
    first, second = torch.cat([x[0:2], x[4:6], x[7:9]]), torch.cat([x[2:4], x[6:7], x[9:10]])
    layer = Norms().layers[0]
    expected = torch.zeros(6)
    for micro in (first, second):
        expected = 0.9 * expected + 0.1 * layer(micro).mean(0).detach()
    assert_near(weights["layers.1.running_mean"], expected, 1e-5)
    assert weights["layers.1.num_batches_tracked"] == 2


@pytest.mark.parametrize("precision", ["bf16", "bf16_params"])
def test_in_16_bits_a_run_is_that_of_float32_but_for_roundings(precision: str, tmp_path: Path) -> None:
    expected, _ = train(tmp_path / "full", 3, "zero2", sync_batchnorm=True)
    got, _ = train(tmp_path / "half", 3, "zero2", sync_batchnorm=True, precision=precision)
    assert got == pytest.approx(expected, rel=0.05)


def test_a_model_without_batch_norm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="sync_batchnorm: the model has no BatchNorm inside"):
        train(tmp_path, 2, "data_parallel", model="mlp", sync_batchnorm=True)


@pytest.mark.parametrize("make", [DataParallel, Zero])
def test_a_loop_of_ones_own_with_ranks_of_different_graphs(make: type) -> None:
    """Buckets are launched from within backward while the layers reduce on their own communicator."""
    original = Norms(6, 3)
    x = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))

    def rank(comm: Communicator) -> dict[str, Tensor]:
        model = copy.deepcopy(original)
        stepping = torch.optim.SGD(model.parameters(), 0.1)
        convert_sync_batchnorm(model, comm)
        options = {"loss_reduction": "sum", "global_count": 10, "overlap": "on", "bucket_bytes": 1}
        with make(model, comm, stepping, **options):
            for _ in range(3):
                stepping.zero_grad()
                y = model(x.split([6, 4, 0])[comm.rank])
                (y.square().sum() if comm.rank else (y * y).sum(1).sum()).backward()
                stepping.step()
        return model.state_dict()

    model = copy.deepcopy(original)
    stepping = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        stepping.zero_grad()
        (model(x).square().sum() / 10).backward()
        stepping.step()
    for got in run_threads(3, rank):
        torch.testing.assert_close(got, model.state_dict(), rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_over_mpi_a_loop_of_ones_own_is_that_of_one_process(environment: dict[str, str]) -> None:
    program = Path(__file__).with_name("sync_batch_norm_program.py")
    sums = []
    for ranks in (1, 3):
        command = [sys.executable, "-m", "pycomm.launch", "-n", str(ranks), str(program)]
        finished = subprocess.run(
            command, capture_output=True, text=True, timeout=100, check=False, env=environment
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        sums += [float(word) for word in finished.stdout.split()]
    assert len(sums) == 4
    assert sums == pytest.approx([sums[0]] * 4, rel=1e-6)
