"""The loss scale: torch's rule, one decision for all ranks, and what a skipped step leaves alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from one_process import COUNT, backward, batch, part, summed_loss
from safetensors.torch import load_file
from torch import Tensor, nn

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import MODELS, DataParallel, FitConfig, LossScaler, TrainerError, Zero, fit
from trainer.errors import DivergedError
from trainer.rows import read_rows
from trainer.strategies.single import Single
from trainer.strategy import Wire

KINDS: dict[str, Callable] = {
    "data_parallel": DataParallel,
    "zero1": Zero,
    "zero2": lambda *parts, **options: Zero(*parts, stage=2, **options),
    "zero3": lambda *parts, **options: Zero(*parts, stage=3, **options),
}


def wide_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 67), nn.Tanh(), nn.Linear(67, 3))


@pytest.mark.parametrize("interval", [1, 3])
def test_the_scale_goes_the_way_of_torchs_grad_scaler(interval: int) -> None:
    """Both see the same gradients: every one of 40 steps is finite or not by a fixed draw."""
    draw = torch.rand(40, generator=torch.Generator().manual_seed(0)) < 0.3

    def rank(comm: Communicator) -> list[tuple[float, bool, float]]:
        parameter = nn.Parameter(torch.zeros(3))
        model = nn.ParameterList([parameter])
        stepping = torch.optim.SGD([parameter], 1.0)
        single = Single(model, comm, stepping, Wire())
        theirs = torch.amp.GradScaler("cpu", 2.0**10, 4.0, 0.25, interval)
        ours = LossScaler(comm, initial=2.0**10, growth=4.0, backoff=0.25, interval=interval, least=2.0**-40)
        steps = []
        for overflows in draw.tolist():
            assert ours.scale == theirs.get_scale()
            loss = parameter.sum() * 3
            parameter.grad = None
            assert torch.equal(ours.scaled(loss), theirs.scale(loss))
            ours.scaled(loss).backward()
            if overflows:
                parameter.grad[1] = math.inf
            gradient = parameter.grad.clone()
            theirs.unscale_(stepping)
            unscaled, parameter.grad = parameter.grad, gradient
            taken = ours.unscale(single, model)
            assert not taken or torch.equal(parameter.grad, unscaled)
            theirs.step(stepping)
            theirs.update()
            steps.append((ours.scale, taken, parameter[0].item()))
        assert ours.skipped == int(draw.sum())
        return steps

    scales, taken, positions = zip(*run_threads(1, rank)[0], strict=True)
    assert list(taken) == (~draw).tolist()
    assert positions[-1] == -3 * sum(taken)
    assert len(set(scales)) > 3


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_all_ranks_skip_where_one_ranks_part_overflows(kind: str, size: int) -> None:
    """The first step and the third overflow, in one element; the other two are those of one process."""
    original = wide_model()

    def rank(comm: Communicator) -> tuple[list[bool], float, dict[str, Tensor]]:
        model = copy.deepcopy(original)
        stepping = torch.optim.Adam(model.parameters(), 0.01)
        scaler = LossScaler(comm)
        taken = []
        with KINDS[kind](model, comm, stepping, loss_reduction="sum", global_count=COUNT) as parallel:
            for step in range(4):
                stepping.zero_grad()
                inputs, targets = (part(tensor, comm) for tensor in batch(step))
                loss = summed_loss(model, inputs, targets)
                if step in (0, 2) and comm.rank == size - 1:
                    loss = loss + model[2].bias[1] * 1e38
                scaler.scaled(loss).backward()
                parallel.synchronize()
                taken.append(scaler.unscale(parallel, model))
                if taken[-1]:
                    parallel.clip_grad_norm_(1.0)
                    stepping.step()
        return taken, scaler.scale, model.state_dict()

    model = copy.deepcopy(original)
    stepping = torch.optim.Adam(model.parameters(), 0.01)
    for step in (1, 3):
        stepping.zero_grad()
        (summed_loss(model, *batch(step)) / COUNT).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        stepping.step()
    for taken, scale, got in run_threads(size, rank):
        assert taken == [False, True, False, True] and scale == 2.0**14
        torch.testing.assert_close(got, model.state_dict(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_torchs_grad_scaler_steps_or_skips_on_all_ranks(kind: str, size: int) -> None:
    """synchronize(), share_overflow(), unscale_(), clip_grad_norm_(), step(), update()."""
    original = wide_model()

    def rank(comm: Communicator) -> tuple[list[float], dict[str, Tensor]]:
        model = copy.deepcopy(original)
        stepping = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu")
        scales = []
        with KINDS[kind](model, comm, stepping, loss_reduction="sum", global_count=COUNT) as parallel:
            for step in range(4):
                stepping.zero_grad()
                inputs, targets = (part(tensor, comm) for tensor in batch(step))
                loss = summed_loss(model, inputs, targets)
                if step in (0, 2) and comm.rank == 0:
                    loss = loss + model[2].bias[1] * 1e38
                scaler.scale(loss).backward()
                parallel.synchronize()
                parallel.share_overflow()
                scaler.unscale_(stepping)
                parallel.clip_grad_norm_(1.0)
                scaler.step(stepping)
                scaler.update()
                scales.append(scaler.get_scale())
        return scales, model.state_dict()

    model = copy.deepcopy(original)
    stepping = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for step in (1, 3):
        stepping.zero_grad()
        (summed_loss(model, *batch(step)) / COUNT).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        stepping.step()
    for scales, got in run_threads(size, rank):
        assert scales == [2.0**15, 2.0**15, 2.0**14, 2.0**14]
        torch.testing.assert_close(got, model.state_dict(), rtol=1e-4, atol=1e-6)


def test_grad_scaler_is_refused_on_all_ranks_where_one_has_no_gradient() -> None:
    def rank(comm: Communicator) -> None:
        model = nn.Linear(6, 3)  # 18 and 3 elements, which lie in the first part of three
        stepping = torch.optim.SGD(model.parameters(), 0.1)
        parallel = Zero(model, comm, stepping, loss_reduction="sum", global_count=COUNT)
        backward(model, comm)
        parallel.synchronize()
        with pytest.raises(TrainerError, match="share_overflow: a rank has no gradient"):
            parallel.share_overflow()

    run_threads(3, rank)


def test_overflow_at_the_least_scale_is_an_error_on_all_ranks() -> None:
    def rank(comm: Communicator) -> None:
        model = nn.Linear(100, 3)
        stepping = torch.optim.SGD(model.parameters(), 0.1)
        scaler = LossScaler(comm, initial=4.0, least=2.0)
        with Zero(model, comm, stepping) as parallel:
            (model(torch.ones(1, 100))[0, 2] * math.inf).backward()
            parallel.synchronize()
            assert not scaler.unscale(parallel, model) and scaler.scale == 2
            with pytest.raises(TrainerError, match="not finite at a loss scale of 2, the least"):
                scaler.unscale(parallel, model)

    run_threads(3, rank)


@pytest.mark.parametrize(
    "options",
    [{"growth": 1.0}, {"backoff": 1.0}, {"backoff": 0.0}, {"interval": 0}, {"initial": 0.5}, {"least": 0.0}],
)
def test_wrong_arguments_are_refused(options: dict) -> None:
    with pytest.raises(TrainerError, match="loss scaler: expected growth > 1 > backoff > 0"):
        run_threads(1, lambda comm: LossScaler(comm, **options))


# ---- in fit


@MODELS.register("test_scaler")
def steep(inputs: int, outputs: int, slope: float = 1.0) -> nn.Module:
    """The steeper, the smaller the scale at which its gradients overflow in float16."""
    model = nn.Sequential(nn.Linear(inputs, 40), nn.Tanh(), nn.Linear(40, outputs))
    for parameter in model.parameters():
        parameter.data = torch.linspace(-1, 1, parameter.numel()).view(parameter.shape)
    model[2].register_forward_hook(lambda _, __, output: output * slope)
    return model


def train(out: Path, ranks: int, strategy: str, **options: Any) -> list[dict[str, Any]]:
    settings = {"optimizer": "adam", "lr": 0.001, "global_batch": 40, "steps": 12, **options}
    config = FitConfig(
        data="linear", model="test_scaler", strategy=strategy, threads=1, out=out, precision="fp16",
        schedule="linear", **settings,
    )  # fmt: skip
    run_threads(ranks, lambda comm: fit(config, comm))
    return read_rows(out / "metrics.jsonl")


@pytest.mark.parametrize("strategy", ["single", "data_parallel", "zero1", "zero2"])
def test_fit_skips_until_the_scale_fits_and_the_schedule_waits(strategy: str, tmp_path: Path) -> None:
    ranks = 1 if strategy == "single" else 3
    rows = train(tmp_path, ranks, strategy, model_options={"slope": 2.0**-6}, clip_norm=5.0)
    taken = [row["taken"] for row in rows]
    assert not taken[0] and taken[-1]
    skips = [taken[:step].count(False) for step in range(12)]  # before each step
    assert [row["loss_scale"] for row in rows] == [2.0 ** (16 - before) for before in skips]
    assert [("grad_norm" in row) for row in rows] == taken
    # A step that was skipped costs no learning rate.
    lr = [0.001 * (1 - (step - before) / 12) for step, before in enumerate(skips)]
    assert [row["lr"] for row in rows] == pytest.approx(lr, rel=1e-6)


@pytest.mark.parametrize("strategy", ["data_parallel", "zero2"])
def test_a_resumed_run_has_the_scale_and_the_schedule_of_the_whole_one(strategy: str, tmp_path: Path) -> None:
    options = {"model_options": {"slope": 2.0**-6}, "save_every": 5}
    whole = train(tmp_path / "whole", 2, strategy, **options)
    assert not whole[0]["taken"] and whole[9]["taken"]
    checkpoint = tmp_path / "whole" / "checkpoints" / "step-000010"
    assert checkpoint.is_dir()
    resumed = train(tmp_path / "resumed", 2, strategy, **options, resume=str(checkpoint))
    for row, again in zip(whole[10:], resumed[-2:], strict=True):
        for key in ("step", "loss", "lr", "loss_scale", "taken"):
            assert row[key] == again[key]
    expected, got = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_a_run_whose_gradients_overflow_at_any_scale_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"loss scale of 1, the least.*last_good.safetensors has"):
        train(tmp_path, 2, "zero1", model_options={"slope": 64.0}, steps=40)
