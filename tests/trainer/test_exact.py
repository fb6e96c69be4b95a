"""Exact mode: equal bits whatever the number of ranks and the strategy."""

from __future__ import annotations

import itertools
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_runs import COMMON, IMAGES, MODELS, SIZES, STRATEGIES, outcome, train
from torch import Tensor, nn
from torch.nn import functional

from pycomm import Communicator
from pycomm.testing import run_threads
from tests import helpers
from trainer import MODELS as REGISTRY
from trainer import STRATEGIES as STRATEGY_REGISTRY
from trainer import FitConfig, Strategy, TrainerError, fit, passes
from trainer.errors import CollectiveError, StoppedError
from trainer.preparation import Run

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "optimizer_options": {"momentum": 0.9, "nesterov": True}},
    "sgd fused": {"optimizer": "sgd", "optimizer_options": {"momentum": 0.9, "fused": True}},
    "adagrad": {"optimizer": "adagrad", "optimizer_options": {"weight_decay": 0.01}},
    "adagrad fused": {"optimizer": "adagrad", "optimizer_options": {"fused": True}},
    "adam": {"optimizer": "adam", "optimizer_options": {"amsgrad": True}},
    "adam foreach": {"optimizer": "adam", "optimizer_options": {"foreach": True}},
    "adam fused": {"optimizer": "adam", "optimizer_options": {"fused": True}},
    "adamw": {"optimizer": "adamw"},
    "adamw fused": {"optimizer": "adamw", "optimizer_options": {"fused": True}, "schedule": "cosine"},
}
ALL = [("single", 1), *itertools.product(STRATEGIES, SIZES)]


@pytest.fixture(autouse=True)
def one_forward_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that are threads share the generator that dropout draws from. (A forward that gathers parameters
    needs the others': it goes without, and without dropout.)"""
    forward, lock = passes._forward, threading.Lock()

    def alone(run: Run, *arguments: Any) -> Any:
        with nullcontext() if run.strategy.sharded else lock:
            return forward(run, *arguments)

    monkeypatch.setattr(passes, "_forward", alone)


def assert_same(runs: list[tuple[str, int]], out: Path, **options: Any) -> None:
    expected = train(1, out / "expected", "single", **options)
    for strategy, size in runs:
        got = train(size, out / f"{strategy}-{size}", strategy, **options)
        for name, value in expected.items():
            assert got[name] == value, f"{name} of {strategy} on {size} ranks"


@pytest.mark.parametrize("model", MODELS)
def test_a_run_has_the_same_bits_on_any_ranks_under_any_strategy(model: str, tmp_path: Path) -> None:
    assert_same([("data_parallel", 8), ("zero1", 2), ("zero2", 4)], tmp_path, **MODELS[model])


@pytest.mark.parametrize("size", [2, *(pytest.param(n, marks=pytest.mark.long) for n in (1, 4, 8))])
@pytest.mark.parametrize("model", MODELS)
def test_parameters_in_blocks_have_the_bits_of_others(model: str, size: int, tmp_path: Path) -> None:
    options = {**MODELS[model], "model_options": {**MODELS[model]["model_options"], "dropout": 0.0}}
    assert_same([("zero3", size)], tmp_path, **options)


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_every_combination(model: str, optimizer: str, clip_norm: float | None, tmp_path: Path) -> None:
    options = {**MODELS[model], **OPTIMIZERS[optimizer], "clip_norm": clip_norm, "steps": 4}
    assert_same(ALL, tmp_path, **options)


@pytest.mark.long
@pytest.mark.parametrize("model", ["mlp", "gpt"])
def test_fifty_steps(model: str, tmp_path: Path) -> None:
    assert_same(ALL, tmp_path, **{**MODELS[model], "steps": 50, "eval_every": 10})


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By model; alone, so that dropout needs no lock."""
    out = tmp_path_factory.mktemp("single")
    return {name: train(1, out / name, "single", **options) for name, options in MODELS.items()}


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("strategy", "size"),
    [
        ("zero2", 2),
        pytest.param("zero1", 4, marks=pytest.mark.long),
        pytest.param("zero3", 2, marks=pytest.mark.long),
        pytest.param("data_parallel", 8, marks=pytest.mark.long),
    ],
)
def test_processes_over_mpi_have_the_bits_of_one(
    strategy: str, size: int, tmp_path: Path, in_one_process: dict[str, Any]
) -> None:
    finished = helpers.start(size, "-m", "tests.trainer.exact_runs", str(tmp_path), strategy).finish(180)
    assert finished.status == 0, str(finished)
    for model, expected in in_one_process.items():
        got = outcome(tmp_path / model)
        for name, value in expected.items():
            assert got[name] == value, f"{name} of {model}"


def test_without_it_bits_depend_on_the_number_of_ranks(tmp_path: Path) -> None:
    """What the other tests compare can differ."""
    options = {**MODELS["mlp"], "exact": False}
    hashes = [train(size, tmp_path / str(size), **options)["param_sha256"] for size in (1, 2)]
    assert hashes[0] != hashes[1]


def test_other_shards_are_another_run(tmp_path: Path) -> None:
    runs = [train(2, tmp_path / str(shards), **MODELS["mlp"], shards=shards) for shards in (2, 8)]
    assert runs[0]["param_sha256"] != runs[1]["param_sha256"]


@pytest.mark.parametrize(
    "options",
    [
        {"global_batch": 3},  # most shards are empty
        {"global_batch": 113, "shards": 16, "steps": 2},
        {"shards": 2, "overlap": "on"},
        {"strategy_options": {"share_params": True}},
        {"strategy_options": {"pool": 1}, "overlap": "on"},
    ],
    ids=str,
)
def test_it_holds_for_other_options(options: dict[str, Any], tmp_path: Path) -> None:
    everywhere = {name: value for name, value in options.items() if name != "strategy_options"}
    expected = train(1, tmp_path / "expected", "single", **{**MODELS["mlp"], **everywhere})
    strategy = "zero2" if "strategy_options" in options else "data_parallel"
    assert train(2, tmp_path / "got", strategy, **{**MODELS["mlp"], **options}) == expected


class Sometimes(nn.Module):
    """Of four branches a sample takes the one that it looks like, and nobody the fifth."""

    def __init__(self, inputs: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Linear(81, outputs) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) - 0.5
        kinds = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
        result = torch.zeros(len(x), 3)
        for kind in kinds.unique().tolist():
            chosen = functional.one_hot(kinds, 4)[:, kind : kind + 1]
            result = result + self.branches[kind](x * chosen) * chosen
        return result


def test_parameters_that_some_shards_or_all_do_not_use(tmp_path: Path) -> None:
    if "test_sometimes" not in REGISTRY.names():
        REGISTRY.register("test_sometimes")(Sometimes)
    options = {**IMAGES, "model": "test_sometimes", "global_batch": 9, "optimizer": "adamw"}
    assert_same([("data_parallel", 4), ("zero1", 8), ("zero2", 2)], tmp_path, **options)


def test_a_collate_sees_the_samples_of_one_logical_shard(tmp_path: Path) -> None:
    options = {**COMMON, "data": "own_data:collated", "model": "own_data:model", "steps": 2}
    assert_same([("data_parallel", 4)], tmp_path, **options)


def test_training_stops_at_the_same_step_with_the_same_best_weights(tmp_path: Path) -> None:
    options = {**MODELS["mlp"], "steps": 60, "eval_every": 1, "patience": 2, "tolerance": 0.01}
    runs = [train(size, tmp_path / str(size), **options) for size in (1, 4)]
    assert runs[0] == runs[1]
    assert runs[0]["steps"] < 60
    assert "best.safetensors" in runs[0]


# ---- checkpoints


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("zero2", 4), ("single", 1)),
        (("data_parallel", 2), ("zero1", 8)),
        pytest.param(("single", 1), ("zero2", 2), marks=pytest.mark.long),
        pytest.param(("zero1", 8), ("data_parallel", 4), marks=pytest.mark.long),
    ],
)
def test_a_run_resumed_on_other_ranks_under_another_strategy_goes_on_to_the_bit(
    before: tuple[str, int], after: tuple[str, int], tmp_path: Path
) -> None:
    options = {**MODELS["mlp"], "save_every": 4, "schedule": "constant"}
    expected = train(1, tmp_path / "whole", "single", **options)
    half = tmp_path / "half"
    train(before[1], half, before[0], **{**options, "steps": 4})
    assert (
        train(after[1], half, after[0], **options, resume="auto")["param_sha256"] == expected["param_sha256"]
    )
    got = outcome(half)
    assert got["rows"][4:] == expected["rows"][4:]
    assert got["model.safetensors"] == expected["model.safetensors"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"exact": False}, "exact: .* is of a run with True, this one has False"),
        ({"shards": 4}, "shards: .* is of a run with 8, this one has 4"),
        ({"bucket_mb": 1.0}, "bucket_mb: .* is of a run with 0.02, this one has 1.0"),
    ],
)
def test_what_decides_the_bits_cannot_change_at_a_resume(
    other: dict[str, Any], words: str, tmp_path: Path
) -> None:
    options = {**MODELS["mlp"], "save_every": 2, "steps": 2}
    train(1, tmp_path, **options)
    with pytest.raises(CollectiveError, match=words):
        train(1, tmp_path, **{**options, **other, "steps": 4, "resume": "auto"})


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shards": 6}, "shards: expected a power of two .*, got 6"),
        ({"shards": 0}, "shards: expected a power of two .*, got 0"),
        ({"exact": False, "shards": 8}, "shards belongs to exact"),
        ({"codec": "fp16"}, "exact cannot have codec fp16: it rounds what each rank brings"),
        ({"grad_reduction": "rank_mean"}, "exact cannot have grad_reduction rank_mean"),
        ({"global_batch": None, "batch_per_rank": 8}, "exact cannot have batch_per_rank 8"),
        ({"threads": 2}, "exact cannot have threads 2"),
    ],
)
def test_options_that_cannot_be_exact_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainerError, match=words):
        FitConfig(**{**MODELS["mlp"], **options}).check()


def test_ranks_that_do_not_divide_the_shards_are_refused(tmp_path: Path) -> None:
    words = "8 logical shards cannot be shared out evenly among 3 ranks: expected 1 or 2 or 4 or 8 ranks"
    with pytest.raises(CollectiveError, match=words):
        train(3, tmp_path, **MODELS["mlp"])


def test_a_strategy_that_does_not_say_that_it_can_be_exact_is_refused(tmp_path: Path) -> None:
    if "test_inexact" not in STRATEGY_REGISTRY.names():

        @STRATEGY_REGISTRY.register("test_inexact")
        class Inexact(Strategy):
            def __init__(self, *_: object) -> None: ...

            def step(self) -> None: ...

    with pytest.raises(CollectiveError, match="strategy 'test_inexact' does not say that it can be"):
        train(1, tmp_path, "test_inexact", **COMMON, data="linear", model="linear")


class Counting(nn.Module):
    """Its forward changes a buffer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.affine = nn.Linear(inputs, outputs)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += len(x)
        return self.affine(x)


@REGISTRY.register("test_exact_model")
def model_of(kind: str, inputs: int, outputs: int) -> nn.Module:
    affine = nn.Linear(inputs, outputs)
    return {
        "batch norm": lambda: nn.Sequential(affine, nn.BatchNorm1d(outputs)),
        "lazy": lambda: nn.Sequential(affine, nn.LazyBatchNorm1d()),
        "synchronised": lambda: nn.SyncBatchNorm(outputs),
        "instance norm": lambda: nn.InstanceNorm1d(outputs, affine=True, track_running_stats=True),
        "bfloat16": lambda: affine.bfloat16(),
        "counting": lambda: Counting(inputs, outputs),
    }[kind]()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("batch norm", r"exact refuses BatchNorm1d \(1\): its statistics"),
        ("lazy", r"exact refuses LazyBatchNorm1d \(1\)"),
        ("synchronised", "exact refuses SyncBatchNorm: its"),
        ("instance norm", "exact refuses InstanceNorm1d: its"),
        ("bfloat16", "expected parameters of float32 or float64, got torch.bfloat16 for weight"),
    ],
)
def test_models_that_cannot_be_exact_are_refused(kind: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(CollectiveError, match=words):
        train(1, tmp_path, **COMMON, data="linear", model="test_exact_model", model_options={"kind": kind})


def test_a_forward_that_changes_a_buffer_ends_all_ranks_in_the_first_step(tmp_path: Path) -> None:
    config = FitConfig(
        **COMMON, data="linear", model="test_exact_model", model_options={"kind": "counting"}, out=tmp_path
    )

    def rank(comm: Communicator) -> str:
        with pytest.raises(StoppedError) as caught:
            fit(config, comm)
        return str(caught.value)

    for said in run_threads(2, rank):
        assert "exact: a forward changes the buffer seen" in said
        assert "has the parameters after step 0" in said


def test_it_computes_with_one_thread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(2)
    train(1, tmp_path, **MODELS["mlp"])
    said = capsys.readouterr().out
    assert "exact over 8 shards" in said
    assert "1 threads per rank" in said
