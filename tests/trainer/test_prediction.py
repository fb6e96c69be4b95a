"""Predictions: every sample once and in order at any number of ranks, from what fit has left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import DATA, Dataset, FitConfig, PredictConfig, TrainerError, evaluate, fit, predict
from trainer.errors import CollectiveError
from trainer.preparation import build_model
from trainer.weights import load_weights

TEXT: dict[str, Any] = {
    "data": "pytext", "data_options": {"length": 8, "limit_bytes": 3000, "validation_fraction": 0.1},
    "model": "gpt", "model_options": {"width": 8, "heads": 1, "layers": 1},
}  # fmt: skip
LINE: dict[str, Any] = {"data": "linear", "model": "linear", "optimizer": "sgd", "lr": 0.01}


@pytest.fixture(scope="module", params=["text", "line"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FitConfig:
    out = tmp_path_factory.mktemp(request.param)
    config = FitConfig(**{"text": TEXT, "line": LINE}[request.param], out=out, steps=3, seed=5, threads=1)
    run_threads(2, lambda comm: fit(config, comm))
    return config


def one_process(config: FitConfig, split: str) -> torch.Tensor:
    dataset = DATA.build(config.data, seed=config.seed, **config.data_options)
    model = build_model(config, dataset)
    load_weights(config.out / "model.safetensors", model)
    with torch.no_grad():
        return dataset.task.predict(model(dataset.splits()[split][0]))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("split", ["test", "train"])
def test_the_predictions_are_those_of_one_process(
    size: int, split: str, trained: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "CHUNK", 50)
    config = PredictConfig(trained.out, split=split, out=tmp_path / "p.npy", threads=1)
    done = run_threads(size, lambda comm: predict(config, comm))
    expected = one_process(trained, split)
    got = np.load(tmp_path / "p.npy")
    assert got.shape == expected.shape
    assert got.dtype == expected.numpy().dtype
    assert np.allclose(got, expected, rtol=1e-6)
    weights = trained.out / "model.safetensors"
    assert done == [{"weights": weights, "step": 3, "count": len(expected)}] * size


def test_more_ranks_than_samples(tmp_path: Path) -> None:
    config = FitConfig(**LINE, data_options={"count": 10}, out=tmp_path, steps=1, threads=1)
    run_threads(2, lambda comm: fit(config, comm))
    wanted = PredictConfig(tmp_path, out=tmp_path / "p.npy", threads=1)
    run_threads(5, lambda comm: predict(wanted, comm))
    expected = one_process(config, "test")
    assert len(expected) == 2
    assert np.array_equal(np.load(tmp_path / "p.npy"), expected)


def test_weights_can_be_named_by_their_file(trained: FitConfig, tmp_path: Path) -> None:
    named = tmp_path / "last_good.safetensors"
    named.write_bytes((trained.out / "model.safetensors").read_bytes())
    (tmp_path / "config.yaml").write_bytes((trained.out / "config.yaml").read_bytes())
    config = PredictConfig(named, out=tmp_path / "p.npy", threads=1)
    assert [done["weights"] for done in run_threads(2, lambda comm: predict(config, comm))] == [named, named]
    assert np.allclose(np.load(tmp_path / "p.npy"), one_process(trained, "test"), rtol=1e-6)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("options", [{"test_fraction": 0.8}, {"validation_fraction": 0.2}])
def test_other_splits_of_the_runs_data_are_refused(
    options: dict[str, float], named: bool, trained: FitConfig, tmp_path: Path
) -> None:
    data = trained.data if named else None
    config = PredictConfig(trained.out, data, options, out=tmp_path / "p.npy", threads=1)

    def rank(comm: Communicator) -> None:
        with pytest.raises(CollectiveError, match=r"is not, bit for bit, what .*model.safetensors learned"):
            predict(config, comm)

    run_threads(2, rank)
    assert not list(tmp_path.iterdir())


def test_options_that_leave_the_runs_data_as_they_are_are_taken(trained: FitConfig, tmp_path: Path) -> None:
    options = dict(trained.data_options)
    config = PredictConfig(trained.out, trained.data, options, out=tmp_path / "p.npy", threads=1)
    run_threads(2, lambda comm: predict(config, comm))
    assert np.allclose(np.load(tmp_path / "p.npy"), one_process(trained, "test"), rtol=1e-6)


@DATA.register("test_other_line")
def other_line(seed: int, count: int = 15) -> Dataset:
    return DATA.build("linear", seed=seed + 1, count=count)


def test_other_data_have_their_own_options(tmp_path: Path) -> None:
    run_threads(1, lambda comm: fit(FitConfig(**LINE, out=tmp_path, steps=1, threads=1), comm))
    config = PredictConfig(tmp_path, "test_other_line", {"count": 30}, out=tmp_path / "p.npy", threads=1)
    run_threads(2, lambda comm: predict(config, comm))
    assert len(np.load(tmp_path / "p.npy")) == 6


def test_a_split_that_is_not_there_lists_what_is(tmp_path: Path) -> None:
    run_threads(1, lambda comm: fit(FitConfig(**LINE, out=tmp_path, steps=1, threads=1), comm))
    config = PredictConfig(tmp_path, split="validation", out=tmp_path / "p.npy", threads=1)
    with pytest.raises(TrainerError, match=r"'linear' has no validation split .* it has train, test"):
        run_threads(1, lambda comm: predict(config, comm))


def test_data_that_the_model_does_not_fit_is_refused(trained: FitConfig, tmp_path: Path) -> None:
    other = "linear" if trained.data == "pytext" else "pytext"
    config = PredictConfig(trained.out, data=other, out=tmp_path / "p.npy", threads=1)
    with pytest.raises(TrainerError, match=r"model '(gpt|linear)': .*unexpected keyword argument"):
        run_threads(1, lambda comm: predict(config, comm))


def test_a_run_without_weights_is_refused(tmp_path: Path) -> None:
    FitConfig(**LINE).save(tmp_path / "config.yaml")
    with pytest.raises(TrainerError, match=r"model.safetensors does not exist: expected weights that fit"):
        run_threads(1, lambda comm: predict(PredictConfig(tmp_path, out=tmp_path / "p.npy"), comm))


@pytest.mark.parametrize("size", [1, 3])
def test_a_file_that_cannot_be_written_is_an_error_on_every_rank(
    size: int, trained: FitConfig, tmp_path: Path
) -> None:
    (tmp_path / "p.npy.partial").symlink_to("/dev/full")
    config = PredictConfig(trained.out, out=tmp_path / "p.npy", threads=1)

    def rank(comm: Communicator) -> str:
        with pytest.raises(CollectiveError) as caught:
            predict(config, comm)
        return str(caught.value)

    for message in run_threads(size, rank):
        assert "p.npy: No space left on device" in message
    assert not list(tmp_path.iterdir())
