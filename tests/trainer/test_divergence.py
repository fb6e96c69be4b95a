"""Numbers that are no longer finite end every rank, at the same step, with the last good parameters kept."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import DATA, MODELS, STRATEGIES, Dataset, FitConfig, Strategy, TrainerError, fit, preparation
from trainer.data import REGRESSION
from trainer.divergence import LastGood, StepLoss
from trainer.errors import DivergedError
from trainer.sampler import Sampler
from trainer.weights import load_weights

POISONED = int(Sampler(100, 10, 0).batch(6).indices[4])  # the sample that is no number, in step 7


@MODELS.register("test_zero")
def zero(inputs: int = 1, outputs: int = 1) -> nn.Module:
    model = nn.Linear(inputs, outputs)  # the same on all ranks, though they are threads
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


class Kink(nn.Linear):
    """sqrt(0): the loss is finite, and the gradient is not."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square().sqrt()


@MODELS.register("test_kink")
def kink(inputs: int = 1, outputs: int = 1) -> nn.Module:
    model = Kink(inputs, outputs)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


@DATA.register("test_poisoned")
def poisoned(seed: int) -> Dataset:
    x = torch.arange(100.0)[:, None] / 100
    y = 2 * x
    y[POISONED] = torch.inf
    return Dataset((x, y), (x[:5], y[:5]), REGRESSION, {"inputs": 1, "outputs": 1})


def config(out: Path, **options: object) -> FitConfig:
    settings = {"data": "linear", "model": "test_zero", "optimizer": "sgd", "lr": 0.01, "threads": 1}
    return FitConfig(out=out, **{**settings, **options})


def errors_of(size: int, settings: FitConfig) -> list[DivergedError]:
    def rank(comm: Communicator) -> DivergedError:
        with pytest.raises(DivergedError) as caught:
            fit(settings, comm)
        comm.barrier()  # it is still sound
        return caught.value

    return run_threads(size, rank)


def mean_loss(comm: Communicator, sums: list[float]) -> float:
    """Of a step whose batch has parts with those sums, of which each rank has some in a row."""
    own = torch.tensor(sums, dtype=torch.float64).view(comm.size, -1)[comm.rank].tolist()
    return StepLoss(own, Sampler(100, 10, 0).batch(0), 1, comm, None, written=False).result()


def test_the_mean_loss_has_the_same_bits_however_the_parts_are_shared_out() -> None:
    sums = [2.0**53, *[1.0] * 7]  # of which the first would swallow each of the others
    for size in (1, 2, 4, 8):
        assert run_threads(size, mean_loss, sums) == [(2.0**53 + 8) / 10] * size  # 7 is halfway


@pytest.mark.parametrize(("part", "ranks"), [(0, "0"), (5, "1"), (7, "1")])
def test_the_rank_that_has_a_loss_that_is_not_finite_is_named_whichever_part_it_is_of(
    part: int, ranks: str
) -> None:
    sums = [1.0] * 8
    sums[part] = torch.nan

    def rank(comm: Communicator) -> None:
        with pytest.raises(DivergedError, match=rf"the loss is nan at step 1 on rank {ranks} \(of 2\)"):
            mean_loss(comm, sums)

    run_threads(2, rank)


def kept(out: Path) -> tuple[int, list[float]]:
    model = nn.Linear(1, 1)
    step = load_weights(out / "last_good.safetensors", model)
    return step, [parameter.item() for parameter in model.parameters()]


@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_sample_that_is_infinite_is_found_at_its_step_and_rank(size: int, tmp_path: Path) -> None:
    batches = [
        [Sampler(100, 10, 0, rank, size).batch(step).indices for rank in range(size)] for step in range(10)
    ]
    where = [(s, r) for s, ranks in enumerate(batches, 1) for r, part in enumerate(ranks) if POISONED in part]
    step, rank = where[0]
    assert step == 7
    settings = config(tmp_path / "run", data="test_poisoned", global_batch=10, epochs=1)
    for error in errors_of(size, settings):
        assert f"the loss is inf at step {step} on rank {rank} (of {size})" in str(error)
        assert f"run/last_good.safetensors has the parameters after step {step - 1}" in str(error)
        assert error.step == step - 1
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "summary.json").exists()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == step - 1


def test_the_parameters_kept_are_those_before_the_failing_step(tmp_path: Path) -> None:
    options = {"data": "test_poisoned", "global_batch": 10}
    error = errors_of(3, config(tmp_path / "run", **options))[0]
    step, parameters = kept(tmp_path / "run")
    assert step == error.step == 6
    x, y = (part[:, 0].double() for part in poisoned(0).train)
    weight = bias = torch.zeros(1, dtype=torch.float64)
    for index in range(step):
        batch = Sampler(100, 10, 0).batch(index).indices
        wrong = weight * x[batch] + bias - y[batch]
        weight, bias = weight - 0.02 * (wrong * x[batch]).mean(), bias - 0.02 * wrong.mean()
    assert parameters == pytest.approx([weight.item(), bias.item()], rel=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_a_finite_loss_with_a_gradient_that_is_not_stops_before_the_update(size: int, tmp_path: Path) -> None:
    for rank, error in enumerate(errors_of(size, config(tmp_path, model="test_kink", steps=3))):
        assert re.search(
            rf"the gradient of (weight|bias) holds nan at step 1 on rank {rank} \(of {size}\)", str(error)
        )
    assert kept(tmp_path) == (0, [0.0, 0.0])


def test_a_loss_that_diverges_in_the_last_update_is_found_by_the_evaluation(tmp_path: Path) -> None:
    for error in errors_of(2, config(tmp_path, lr=1e25, steps=1)):
        assert "the test loss is inf after step 1" in str(error)
    step, parameters = kept(tmp_path)
    assert step == 1
    assert min(parameters) > 1e25


def test_parameters_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    for error in errors_of(2, config(tmp_path, lr=1e38, steps=1)):
        assert "the parameters after step 1 are not finite and were not kept" in str(error)
    assert not (tmp_path / "last_good.safetensors").exists()


@MODELS.register("test_norm")
def norm(inputs: int = 1, outputs: int = 1) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(1), zero(inputs, outputs))


@DATA.register("test_poisoned_input")
def poisoned_input(seed: int) -> Dataset:
    data = poisoned(seed)
    x = data.train[0].clone()
    x[POISONED] = torch.inf
    return Dataset((x, 2 * x), data.test, REGRESSION, data.shape)


@pytest.mark.parametrize("size", [1, 3])
def test_the_buffers_kept_are_those_before_the_failing_forward(size: int, tmp_path: Path) -> None:
    settings = config(tmp_path, data="test_poisoned_input", model="test_norm", global_batch=10)
    assert {error.step for error in errors_of(size, settings)} == {6}
    model = norm()
    assert load_weights(tmp_path / "last_good.safetensors", model) == 6
    statistics = model[0]
    assert statistics.num_batches_tracked == 6
    assert 0 < statistics.running_mean.item() < 1  # of values from 0 to 1


def test_a_second_run_keeps_no_weights_of_the_first(tmp_path: Path) -> None:
    errors_of(1, config(tmp_path, model="test_kink", steps=3))
    run_threads(1, lambda comm: fit(config(tmp_path, steps=1), comm))
    assert not (tmp_path / "last_good.safetensors").exists()
    errors_of(1, config(tmp_path, model="test_kink", steps=3))
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("size", [1, 2])
def test_without_room_for_the_parameters_the_error_says_both(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        raise TrainerError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(preparation, "save_weights", full)
    for error in errors_of(size, config(tmp_path, model="test_kink", steps=3)):
        assert "at step 1" in str(error)
        assert "last_good.safetensors: No space left on device" in str(error)


class Apart(Strategy):
    """Every rank trains for itself."""

    def __init__(self, model: nn.Module, comm: Communicator, optimizer: torch.optim.Optimizer, _: object):
        self.optimizer = optimizer

    def step(self) -> None:
        self.optimizer.step()


STRATEGIES.register("test_apart")(Apart)


@DATA.register("test_one_zero")
def one_zero(seed: int) -> Dataset:
    """A single sample, in step 1, whose gradient is not finite under test_kink, though its loss is."""
    x = torch.ones(20)[:, None]
    x[Sampler(20, 10, 0).batch(0).indices[-1]] = 0
    return Dataset((x, x), (x, x), REGRESSION, {"inputs": 1, "outputs": 1})


@MODELS.register("test_kink_of_product")
def kink_of_product(inputs: int = 1, outputs: int = 1) -> nn.Module:
    model = Kink(inputs, outputs, bias=False)
    nn.init.ones_(model.weight)
    return model


@pytest.mark.parametrize("size", [2, 3])
def test_a_gradient_of_one_rank_alone_ends_all_where_gradients_are_not_shared(
    size: int, tmp_path: Path
) -> None:
    options = {"strategy": "test_apart", "data": "test_one_zero", "model": "test_kink_of_product"}
    last = size - 1
    for error in errors_of(size, config(tmp_path, **options, global_batch=10, steps=2)):
        assert f"rank {last}: the gradient of weight holds nan at step 1 on rank {last} (of {size})" in str(
            error
        )
        assert error.step == 0
    model = kink_of_product()
    assert load_weights(tmp_path / "last_good.safetensors", model) == 0
    assert model.weight.item() == 1


@MODELS.register("test_interrupted")
def interrupted(inputs: int = 1, outputs: int = 1) -> nn.Module:
    model = zero(inputs, outputs)
    model.forwards = 0

    def interrupt(*_: object) -> None:
        model.forwards += 1
        if model.forwards == 3:
            raise KeyboardInterrupt

    model.register_forward_hook(interrupt)
    return model


def test_an_interrupted_step_leaves_the_parameters_before_it(tmp_path: Path) -> None:
    def rank(comm: Communicator) -> str:
        with pytest.raises(KeyboardInterrupt) as caught:
            fit(config(tmp_path, model="test_interrupted"), comm)
        return str(caught.value)

    (said,) = run_threads(1, rank)
    assert said == f"in step 3; {tmp_path}/last_good.safetensors has the parameters after step 2"
    assert kept(tmp_path)[0] == 2


def test_an_interrupt_before_the_first_step_says_so(tmp_path: Path) -> None:
    def rank(comm: Communicator) -> str:
        model = nn.Linear(1, 1)
        strategy = Apart(model, comm, torch.optim.SGD(model.parameters()), None)
        nothing = LastGood(tmp_path / "x", model, comm, strategy, lambda *_, **__: pytest.fail("saved"))
        with pytest.raises(KeyboardInterrupt) as caught, nothing:
            raise KeyboardInterrupt
        return str(caught.value)

    assert run_threads(1, rank) == ["before the first step"]


def test_an_interrupted_update_leaves_no_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.SGD, "step", interrupt)
    settings = config(tmp_path, strategy="single")

    def rank(comm: Communicator) -> str:
        with pytest.raises(KeyboardInterrupt) as caught:
            fit(settings, comm)
        return str(caught.value)

    assert run_threads(1, rank) == ["in or after the update of step 1, whose parameters were not kept"]
    assert not (tmp_path / "last_good.safetensors").exists()
