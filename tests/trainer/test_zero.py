"""Zero in a loop of one's own: the step of DataParallel, and of one process. Ranks are threads."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from one_process import (
    COUNT,
    SIZES,
    Branches,
    backward,
    batch,
    oracle_gradients,
    part,
    small_model,
    summed_loss,
)
from torch import Tensor, nn

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import DataParallel, FitConfig, TrainerError, Zero, fit
from trainer.data.linear import linear
from trainer.preparation import build_model
from trainer.rows import read_rows
from trainer.weights import load_weights

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "momentum": lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1),
    "adagrad": lambda model: torch.optim.Adagrad(model.parameters(), 0.1),
    "adam": lambda model: torch.optim.Adam(model.parameters(), 0.01, amsgrad=True),
    "fused": lambda model: torch.optim.AdamW(model.parameters(), 0.01, fused=True),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), 0.01, centered=True),
    "groups": lambda model: torch.optim.NAdam(
        [
            {"params": [p for p in model.parameters() if p.ndim == 1], "lr": 0.1},
            {"params": [p for p in model.parameters() if p.ndim != 1], "weight_decay": 0.1},
        ],
        0.01,
    ),
}
STAGES: dict[str, dict] = {
    "zero1": {"stage": 1, "overlap": "off"},
    "zero1, overlapping": {"stage": 1, "overlap": "on"},
    "zero2": {"stage": 2},
    "zero2, one buffer": {"stage": 2, "pool": 1},
    "zero1, shared": {"stage": 1, "share_params": True},
    "zero2, shared": {"stage": 2, "share_params": True},
    "zero3": {"stage": 3},
}
State = dict[str, Tensor]


def wide_model() -> nn.Module:
    """Parameters that lie across the parts of several ranks, and some within one."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 67), nn.Tanh(), nn.Linear(67, 3))


def trained(
    kind: type[DataParallel] | type[Zero],
    size: int,
    optimizer: str,
    make: Callable = wide_model,
    **options: object,
) -> list[State]:
    """The parameters of all ranks after some steps with clipping and a schedule."""
    original = make()

    def rank(comm: Communicator) -> State:
        model = copy.deepcopy(original)
        stepping = OPTIMIZERS[optimizer](model)
        schedule = torch.optim.lr_scheduler.ExponentialLR(stepping, 0.9)
        settings = {"loss_reduction": "sum", "global_count": COUNT, "bucket_bytes": 1000, **options}
        with kind(model, comm, stepping, **settings) as parallel:
            for seed in range(4):
                stepping.zero_grad()
                backward(model, comm, seed)
                parallel.clip_grad_norm_(1.0)
                stepping.step()
                schedule.step()
        return model.state_dict()

    return run_threads(size, rank)


def one_process(optimizer: str, make: Callable = wide_model) -> State:
    model = make()
    stepping = OPTIMIZERS[optimizer](model)
    schedule = torch.optim.lr_scheduler.ExponentialLR(stepping, 0.9)
    for seed in range(4):
        stepping.zero_grad()
        (summed_loss(model, *batch(seed)) / COUNT).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        stepping.step()
        schedule.step()
    return model.state_dict()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stage", STAGES)
def test_gradients_are_those_of_the_whole_batch(stage: str, size: int) -> None:
    """Told from one step of SGD with a learning rate of 1, and read from the slices."""
    original = wide_model()

    def rank(comm: Communicator) -> tuple[State, State]:
        model = copy.deepcopy(original)
        stepping = torch.optim.SGD(model.parameters(), 1.0)
        settings = {"loss_reduction": "sum", "global_count": COUNT, "bucket_bytes": 1000, **STAGES[stage]}
        with Zero(model, comm, stepping, **settings) as parallel:
            backward(model, comm)
            parallel.synchronize()
            slices = {name: gradient.clone() for name, gradient in parallel.gradients(model)}
            stepping.step()
        return slices, dict(model.named_parameters())

    expected = oracle_gradients(original)
    results = run_threads(size, rank)
    for name, gradient in expected.items():
        read = torch.cat([slices[name] for slices, _ in results if name in slices])
        assert torch.linalg.norm(read - gradient.flatten()) <= 1e-6 * torch.linalg.norm(gradient)
        stepped = original.get_parameter(name).detach() - gradient
        for _, after in results:
            assert torch.linalg.norm(after[name].detach() - stepped) <= 1e-6 * torch.linalg.norm(stepped)


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_are_those_of_data_parallel_and_of_one_process(optimizer: str, stage: str, size: int) -> None:
    whole = trained(DataParallel, size, optimizer)[0]
    alone = one_process(optimizer)
    for got in trained(Zero, size, optimizer, **STAGES[stage]):
        for name, value in got.items():
            torch.testing.assert_close(value, alone[name], rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(value, whole[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_where_sums_have_one_order_bits_are_those_of_data_parallel(
    optimizer: str, stage: str, size: int
) -> None:
    def run(kind: type, **options: object) -> list[State]:
        original = wide_model()

        def rank(comm: Communicator) -> State:
            # Several compute threads cut what torch's fused optimizers step, and edges are rounded otherwise.
            torch.set_num_threads(1)
            model = copy.deepcopy(original)
            stepping = OPTIMIZERS[optimizer](model)
            with kind(model, comm, stepping, loss_reduction="sum", global_count=COUNT, **options):
                for seed in range(3):
                    stepping.zero_grad()
                    backward(model, comm, seed)
                    stepping.step()
            return model.state_dict()

        return run_threads(size, rank)

    for got in run(Zero, **STAGES[stage]):
        torch.testing.assert_close(got, run(DataParallel)[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("stage", "read"),  # which stage 3 refuses to a state_dict: test_zero3.py
    [(s, r) for s in STAGES for r in ("forward", "state_dict", "wait") if (s, r) != ("zero3", "state_dict")],
)
def test_an_exception_behind_a_step_leaves_no_rank_with_half_of_it(stage: str, read: str) -> None:
    """Rank 0 updates its part only when the others have left the block."""
    original = wide_model()
    left = threading.Semaphore(0)

    def rank(comm: Communicator) -> State:
        model = copy.deepcopy(original)
        stepping = torch.optim.SGD(model.parameters(), 1.0)
        settings = {"loss_reduction": "sum", "global_count": COUNT, "bucket_bytes": 1000, **STAGES[stage]}
        parallel = Zero(model, comm, stepping, **settings)
        if comm.rank == 0:
            stepping.register_step_pre_hook(lambda *_: [left.acquire(timeout=60) for _ in range(2)] and None)
        with pytest.raises(KeyError), parallel:
            backward(model, comm)
            stepping.step()
            raise KeyError
        left.release()
        {"forward": lambda: model(batch()[0]), "state_dict": model.state_dict, "wait": parallel.wait}[read]()
        stepped = copy.deepcopy(dict(model.named_parameters()))
        model(batch()[0])
        assert not any(module._forward_pre_hooks for module in model.modules())
        assert not model._state_dict_pre_hooks
        comm.barrier()
        if comm.rank == 0:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.zero_()
        comm.barrier()
        if comm.rank:  # who shared memory does so no longer
            assert all(torch.equal(stepped[name], now) for name, now in model.named_parameters())
        return stepped

    gradients = oracle_gradients(original)
    for got in run_threads(3, rank):
        for name, parameter in original.named_parameters():
            torch.testing.assert_close(got[name].detach(), parameter.detach() - gradients[name])


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_may_be_checked_right_after_a_step(stage: str) -> None:
    def rank(comm: Communicator) -> None:
        model = copy.deepcopy(original)
        stepping = torch.optim.SGD(model.parameters(), 1.0)
        with Zero(model, comm, stepping, loss_reduction="sum", global_count=COUNT, **STAGES[stage]) as zero:
            for seed in range(3):
                stepping.zero_grad()
                backward(model, comm, seed)
                stepping.step()
                zero.check_parameters()

    original = wide_model()
    run_threads(3, rank)


@pytest.mark.parametrize("stage", STAGES)
def test_codecs_and_a_rank_without_samples(stage: str) -> None:
    """Rank 2 of three alone has samples; in fp16 too all end equal, which leaving the block checks."""

    def rank(comm: Communicator) -> State:
        model = small_model_copy()
        stepping = torch.optim.SGD(model.parameters(), 0.1)
        with Zero(
            model, comm, stepping, loss_reduction="sum", global_count=COUNT, codec="fp16", **STAGES[stage]
        ):
            for seed in range(2):
                stepping.zero_grad()
                if comm.rank == 2:
                    summed_loss(model, *batch(seed)).backward()
                stepping.step()
        return model.state_dict()

    original = small_model()

    def small_model_copy() -> nn.Module:
        return copy.deepcopy(original)

    model = small_model_copy()
    stepping = torch.optim.SGD(model.parameters(), 0.1)
    for seed in range(2):
        stepping.zero_grad()
        (summed_loss(model, *batch(seed)) / COUNT).backward()
        stepping.step()
    for got in run_threads(3, rank):
        torch.testing.assert_close(got, model.state_dict(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("size", [1, 3])
def test_no_sync_accumulates_and_zero_grad_drops_what_it_accumulated(stage: str, size: int) -> None:
    def rank(comm: Communicator) -> State:
        model = copy.deepcopy(original)
        stepping = torch.optim.SGD(model.parameters(), 0.1)
        with Zero(
            model, comm, stepping, loss_reduction="sum", global_count=2 * COUNT, **STAGES[stage]
        ) as parallel:
            with parallel.no_sync():
                backward(model, comm, 5)
            stepping.zero_grad()
            with parallel.no_sync():
                backward(model, comm, 0)
            backward(model, comm, 1)
            stepping.step()
        return model.state_dict()

    original = wide_model()
    model = copy.deepcopy(original)
    stepping = torch.optim.SGD(model.parameters(), 0.1)
    for seed in range(2):
        (summed_loss(model, *batch(seed)) / (2 * COUNT)).backward()
    stepping.step()
    for got in run_threads(size, rank):
        torch.testing.assert_close(got, model.state_dict())


@pytest.mark.parametrize("stage", STAGES)
def test_a_parameter_that_no_rank_used_is_left_alone(stage: str) -> None:
    """Weight decay and momentum would move it; and which ones are used changes from step to step."""

    def steps(model: nn.Module, stepping: torch.optim.Optimizer, comm: Communicator | None) -> None:
        for seed, taken in enumerate([(0,), (0, 2), (2,), (0,)]):
            stepping.zero_grad()
            inputs = batch(seed)[0] if comm is None else part(batch(seed)[0], comm)
            (model(inputs, taken).square().sum() / (COUNT if comm is None else 1)).backward()
            stepping.step()

    def rank(comm: Communicator) -> State:
        model = copy.deepcopy(original)
        stepping = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.5)
        with Zero(
            model, comm, stepping, loss_reduction="sum", global_count=COUNT, bucket_bytes=1, **STAGES[stage]
        ):
            steps(model, stepping, comm)
        return model.state_dict()

    torch.manual_seed(2)
    original = Branches()
    model = copy.deepcopy(original)
    steps(model, torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.5), None)
    expected = model.state_dict()
    assert torch.equal(expected["branches.1.weight"], original.branches[1].weight)
    for got in run_threads(2, rank):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.timeout(100)
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_run_of_fit_is_that_of_one_process(strategy: str, size: int, tmp_path: Path) -> None:
    def losses(name: str, ranks: int) -> list[float]:
        config = FitConfig(
            data="mnist5k", model="mlp", strategy=name, steps=10, global_batch=10, seed=3, threads=1,
            lr=0.01, eval_every=4, out=tmp_path / name, model_options={"hidden": [32, 16]}, bucket_mb=0.002,
            data_options={"validation_fraction": 0.1},
        )  # fmt: skip
        run_threads(ranks, lambda comm: fit(config, comm))
        rows = read_rows(tmp_path / name / "metrics.jsonl")
        return [row["loss"] for row in rows] + [
            row["validation"]["loss"] for row in rows if "validation" in row
        ]

    pytest.importorskip("mlxtend")
    assert losses(strategy, size) == pytest.approx(losses("single", 1), rel=1e-5)


@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_a_loss_that_is_not_finite_ends_all_ranks_before_the_update(strategy: str, tmp_path: Path) -> None:
    config = FitConfig(
        data="linear", model="linear", strategy=strategy, steps=400, global_batch=40, optimizer="sgd", lr=9.0,
        threads=1, out=tmp_path,
    )  # fmt: skip
    with pytest.raises(
        TrainerError, match=r"(the loss|the gradient).*last_good.safetensors has the parameters"
    ):
        run_threads(3, lambda comm: fit(config, comm))
    assert load_weights(tmp_path / "last_good.safetensors", build_model(config, linear(0))) > 0


@pytest.mark.parametrize("strategy", ["zero1", "zero3"])
def test_an_interrupt_of_rank_0_leaves_what_it_has_alone(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: torch.optim.SGD) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Zero, "synchronize", interrupted)
    config = FitConfig(
        data="linear", model="linear", strategy=strategy, optimizer="sgd", steps=4, threads=1, out=tmp_path
    )
    with pytest.raises(KeyboardInterrupt) as caught:
        run_threads(1, lambda comm: fit(config, comm))
    said = "each rank has a part, were not kept" if strategy == "zero3" else "the parameters after step 0"
    assert said in str(caught.value)


def test_weights_of_a_run_are_the_same_bytes_however_parameters_are_sharded(tmp_path: Path) -> None:
    def files(strategy: str) -> list[bytes]:
        config = FitConfig(
            data="linear", model="mlp", model_options={"hidden": [70, 9]}, strategy=strategy, steps=4,
            lr=0.01, eval_every=1, data_options={"validation_fraction": 0.1}, global_batch=4, threads=1,
            out=tmp_path / strategy,
        )  # fmt: skip
        run_threads(3, lambda comm: fit(config, comm))
        return [(config.out / name).read_bytes() for name in ("best.safetensors", "model.safetensors")]

    assert files("zero3") == files("zero2")


@pytest.mark.parametrize(
    ("strategy", "options", "formula"),
    [
        ("zero1", {}, 4 + 4 + 2),
        ("zero2", {}, 4 + 1 + 2),
        ("zero1", {"share_params": True}, 1 + 4 + 2),
        ("zero2", {"share_params": True, "pool": 1}, 1 + 1 + 2),
        ("zero3", {}, 1 + 1 + 2),
    ],
)
def test_a_run_ends_with_its_memory_beside_the_formula(
    strategy: str, options: dict, formula: float, tmp_path: Path
) -> None:
    config = FitConfig(
        data="linear", model="mlp", model_options={"hidden": [64, 64, 64, 64]}, strategy=strategy, steps=2,
        strategy_options=options, global_batch=8, threads=1, out=tmp_path, bucket_mb=0.004,
    )  # fmt: skip
    memory = run_threads(4, lambda comm: fit(config, comm))[0]["memory"]
    assert memory["formula"] == pytest.approx(formula)
    largest_bucket = config.bucket_mb * 2**20 + 4 * 64 * 64  # one gradient may exceed the size asked for
    pool = options.get("pool", 2) * largest_bucket / 12_673 if strategy in ("zero2", "zero3") else 0
    pool += 2 * 4 * (4160 + 192) / 12_673 if strategy == "zero3" else 0  # the blocks that compute
    assert formula <= memory["bytes_per_parameter"] <= 1.15 * formula + pool


def test_means_of_ranks_are_not_for_zero(tmp_path: Path) -> None:
    config = FitConfig(data="linear", model="linear", strategy="zero1", grad_reduction="sum", out=tmp_path)
    with pytest.raises(TrainerError, match="expected grad_reduction global_mean, got sum"):
        run_threads(1, lambda comm: fit(config, comm))
