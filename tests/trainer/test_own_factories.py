"""Data and models of the user's own, named as module:function, and what is said of those that do not work."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from ended_runs import messages
from own_data import model, tensors
from own_runs import OPTIONS, losses, train

from pycomm.testing import run_threads
from trainer import FitConfig, PredictConfig, fit, predict
from trainer.config import read_config
from trainer.data import CLASSIFICATION, REGRESSION, Dataset
from trainer.errors import CollectiveError, StoppedError, TrainerError
from trainer.weights import load_weights


def test_a_run_is_kept_in_config_yaml_predicted_from_and_resumed(tmp_path: Path) -> None:
    options = {"data_options": {"count": 50}, "model_options": {"width": 7}, "save_every": 4}
    train(2, tmp_path / "run", "memory", **options, steps=8)
    config = read_config(tmp_path / "run" / "config.yaml")
    assert (config.data, config.model) == ("own_data:memory", "own_data:model")
    config.steps, config.resume = 12, "auto"
    run_threads(2, lambda comm: fit(config, comm))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 12
    wanted = PredictConfig(tmp_path / "run", out=tmp_path / "p.npy", threads=1)
    run_threads(3, lambda comm: predict(wanted, comm))
    trained = model(7)
    load_weights(tmp_path / "run" / "model.safetensors", trained)
    assert np.array_equal(np.load(tmp_path / "p.npy"), trained(tensors(range(50, 61))[0]).argmax(1))


def test_any_options_go_to_a_factory_that_takes_any(tmp_path: Path) -> None:
    expected = train(1, tmp_path / "a", "memory", data_options={"count": 40}, steps=3)[1]
    assert losses(train(1, tmp_path / "b", "options", data_options={"count": 40}, steps=3)[1]) == losses(
        expected
    )


def module(folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.py").write_text(text)
    return name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "own_data:"}, "model 'own_data:': expected module:factory"),
        ({"model": ":model"}, "model ':model': expected module:factory"),
        ({"data": "nonesuch_module:x"}, "no module 'nonesuch_module' in the current folder"),
        ({"data": "own_data.more:x"}, "data 'own_data.more:x'"),
        ({"data": "own_data:pionts"}, "own_data has no function 'pionts'; it has .*memory, points"),
        ({"data": "own_data:TEST"}, "own_data has no function 'TEST'"),
        ({"data": "own_data:memory", "data_options": {"cuont": 3}}, "unexpected .* 'cuont'; it takes count"),
        (
            {"data": "own_raising:x"},
            r"own_raising: ZeroDivisionError: .*\(own_raising.py, line 1\)",
        ),
        ({"data": "own_needy:x"}, "own_needy imports nonesuch_package, which is not installed"),
        ({"data": "mnist"}, "no data 'mnist'; there is .*linear.*, or your own as module:factory"),
    ],
)
def test_a_wrong_name_says_what_was_expected(
    options: dict[str, object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(tmp_path, "own_raising", "x = 1 / 0\n")
    module(tmp_path, "own_needy", "import nonesuch_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TrainerError, match=words):
        FitConfig(**{"model": "linear", **options}).check()


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ("memory", {"model": "own_data:no_model"}, r"expected it to return a torch.nn.*Module, got a str"),
        (
            "memory",
            {"model": "own_data:frozen"},
            "expected a parameter to train, got none",
        ),
        ("no_data", {}, r"expected it to return a trainer.data.Dataset, got a tuple"),
        (
            "memory",
            {"model_options": {"width": 0.5}},
            r"width=0.5: TypeError: .* \(own_data.py, line \d+\)",
        ),
        ("points", {"data_options": {"count": 0}}, "train data: expected a torch Dataset of at least one"),
    ],
)
@pytest.mark.parametrize("size", [1, 2])
def test_what_a_factory_returns_is_checked_on_all_ranks(
    data: str, options: dict[str, object], words: str, size: int, tmp_path: Path
) -> None:
    with pytest.raises(CollectiveError, match=words):
        train(size, tmp_path, data, **options)
    assert not list(tmp_path.iterdir())


X, Y = tensors(range(5))


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ([1, 2], "expected two tensors, inputs and targets, or a torch Dataset, got a list"),
        ((X.numpy(), Y.numpy()), "got a tuple of ndarray, ndarray"),
        ((X, Y, Y), "got a tuple of Tensor, Tensor, Tensor"),
        ((X, Y[:3]), "got 5 inputs and 3 targets"),
        ((X[:0], Y[:0]), "got 0 inputs and 0 targets"),
        ((torch.tensor(1.0), Y), "got 0 inputs and 5 targets"),
    ],
)
def test_a_split_that_is_none_is_told(split: object, words: str) -> None:
    with pytest.raises(TrainerError, match=f"train data: .*{re.escape(words)}"):
        Dataset(split, (X, Y), CLASSIFICATION)


def test_a_task_that_is_none_is_told() -> None:
    with pytest.raises(TrainerError, match=r"task: expected a trainer.data.Task, got a str"):
        Dataset((X, Y), (X, Y), "classification")


@pytest.mark.parametrize(("wrong", "got"), [(3, 3), (-1, -1), (-100, None), (300, 300)])
def test_targets_that_are_no_class_are_told(wrong: int, got: int | None) -> None:
    targets = Y.clone()
    targets[2] = wrong
    logits = torch.zeros(5, 3)
    if got is None:
        kept = torch.tensor([0, 1, 3, 4])
        assert CLASSIFICATION.loss(logits, targets) == CLASSIFICATION.loss(logits[kept], Y[kept])
        return
    with pytest.raises(TrainerError, match=rf"expected classes from 0 to 2, .* got {got}"):
        CLASSIFICATION.loss(logits, targets)


def with_wrong_target() -> Dataset:
    wrong = torch.arange(12) % 3
    wrong[7] = 5
    good = torch.linspace(-1, 1, 48).view(12, 4), torch.arange(12) % 3
    return Dataset((good[0], wrong), good, CLASSIFICATION, {"inputs": 4, "outputs": 3})


@pytest.mark.parametrize("strategy", ["data_parallel", "zero2", "zero3"])
def test_a_target_that_is_no_class_is_told_on_all_ranks(strategy: str, tmp_path: Path) -> None:
    parts = {"data": f"{__name__}:with_wrong_target", "model": "mlp", "strategy": strategy, "out": tmp_path}
    steps = {"global_batch": 12, "accumulate": 2, "steps": 1, "model_options": {"hidden": 4}}
    said = messages(3, FitConfig(**{**OPTIONS, **parts, **steps}), StoppedError)
    assert len(set(said)) == 1
    assert re.match(r"rank \d: targets: expected classes from 0 to 2, .* got 5; .*after step 0", said[0])


def test_bytes_are_classes_of_256() -> None:
    targets = torch.tensor([0, 255], dtype=torch.uint8)
    assert CLASSIFICATION.loss(torch.zeros(2, 256), targets).item() == pytest.approx(2 * np.log(256))


def test_targets_that_are_no_numbers_of_classes_are_told() -> None:
    with pytest.raises(TrainerError, match=r"class numbers of an integer dtype, got torch.float32"):
        CLASSIFICATION.loss(torch.zeros(5, 3), Y.float())


def nan_in(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[3] = torch.nan
    return x


def with_nan(where: str = "train") -> Dataset:
    good = X, X
    splits = {"train": good, "test": good, "validation": good, where: (nan_in(X), X)}
    return Dataset(splits["train"], splits["test"], REGRESSION, validation=splits["validation"])


@pytest.mark.parametrize("where", ["train", "test", "validation"])
def test_nan_in_the_data_is_told_before_training(where: str, tmp_path: Path) -> None:
    config = FitConfig(
        **{**OPTIONS, "data": f"{__name__}:with_nan", "out": tmp_path, "data_options": {"where": where}}
    )
    with pytest.raises(CollectiveError, match=f"{where} data: the inputs of sample 3 hold nan"):
        run_threads(2, lambda comm: fit(config, comm))
    assert not list(tmp_path.iterdir())
