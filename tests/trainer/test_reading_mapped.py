"""Map-style torch Datasets: the run is that of the same samples in memory, whoever reads them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import own_data
import pytest
from own_data import TEST, Points, memory, points
from own_runs import losses, train

from pycomm.testing import run_threads
from trainer import PredictConfig, evaluate, predict
from trainer.errors import CollectiveError, StoppedError


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_run_is_that_of_the_same_samples_in_memory_to_the_bit(size: int, tmp_path: Path) -> None:
    expected, rows = train(size, tmp_path / "memory", "memory", eval_every=5)
    got, mapped = train(size, tmp_path / "points", "points", eval_every=5)
    assert got["param_sha256"] == expected["param_sha256"]
    assert losses(mapped) == losses(rows)
    assert got["eval"] == expected["eval"]
    assert got["eval"]["count"] == TEST


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing_also_where_samples_draw_at_random(workers: int, tmp_path: Path) -> None:
    options = {"noise": True}
    expected, rows = train(1, tmp_path / "alone", "points", data_options=options)
    got, worked = train(1, tmp_path / "workers", "points", data_options=options, workers=workers)
    assert got["param_sha256"] == expected["param_sha256"]
    assert losses(worked) == losses(rows)


def test_what_samples_draw_does_not_depend_on_the_ranks_but_on_the_epoch(tmp_path: Path) -> None:
    options: dict[str, Any] = {"data_options": {"noise": True}, "lr": 1e-6, "global_batch": 103, "steps": 2}
    runs = [losses(train(size, tmp_path / str(size), "points", **options)[1]) for size in (1, 2, 3)]
    assert runs[1] == pytest.approx(runs[0], rel=1e-6)
    assert runs[2] == pytest.approx(runs[0], rel=1e-6)
    assert abs(runs[0][0] - runs[0][1]) > 1e-4  # the same samples with another noise
    silent = losses(train(1, tmp_path / "silent", "points", **{**options, "data_options": {}})[1])
    assert abs(silent[0] - silent[1]) < 1e-5


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_resumed_run_goes_on_at_the_exact_sample_and_reads_none_before_it(
    size: int, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"save_every": 10, "data_options": {"noise": True}}
    _, whole = train(2, tmp_path / "whole", "points", **options)
    out = tmp_path / "resumed"
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "step-000010", out / "checkpoints" / "step-000010")
    Points.read.clear()
    _, rows = train(size, out, "points", **options, resume="auto")
    assert [row["step"] for row in rows] == list(range(11, 18))
    assert losses(rows) == pytest.approx(losses(whole[10:]), rel=1e-5)
    # Steps 11 to 14 are the rest of epoch 1, 103 - 3 x 16 samples; 15 to 17 are 48 of epoch 2. Besides: what
    # is hashed, three of each split, and the first of each again; and the test split.
    trained = 103 - 48 + 48
    assert len(Points.read) == trained + size * 8 + TEST


@pytest.mark.parametrize("data", ["collated", "collated_stream"])
def test_what_a_collate_draws_is_drawn_again_whoever_reads(data: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_every": 4, "steps": 6}
    _, whole = train(1, tmp_path / "whole", data, **options)
    out = tmp_path / "resumed"
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "step-000004", out / "checkpoints" / "step-000004")
    _, rows = train(1, out, data, **options, workers=1, resume="auto")
    assert losses(rows) == losses(whole[4:])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raise", r"train sample 57: KeyError: 'no such image' \(own_data.py, line \d+\)"),
        ("nan", "train sample 57: its input holds nan"),
        (
            "shape",
            r"train sample \d+: its input has shape \(\d,\), that of sample \d+ \(\d,\); samples of diff",
        ),
        ("dict", r"train sample 57: expected \(input, target\), got a dict of 1"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_is_none_is_told_with_its_number_to_all_ranks(
    how: str, words: str, workers: int, tmp_path: Path
) -> None:
    size = 1 if workers else 3  # threads and forks do not mix
    with pytest.raises(StoppedError, match=words) as caught:
        train(size, tmp_path, "broken", data_options={"how": how}, workers=workers)
    assert "last_good.safetensors has the parameters after step" in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_is_none_in_an_evaluation_is_told_to_all_ranks(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "CHUNK", 10)  # or no worker is worth while
    size = 1 if workers else 3
    with pytest.raises(CollectiveError, match="test sample 57: KeyError: 'no such image'"):
        train(size, tmp_path, "broken_test", data_options={"how": "raise"}, workers=workers)


def test_the_death_of_a_worker_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match="a data worker has ended, killed, "):
        train(1, tmp_path, "broken", data_options={"how": "kill"}, workers=2)
    assert (tmp_path / "last_good.safetensors").exists()


def test_more_ranks_than_samples_leave_some_without(tmp_path: Path) -> None:
    expected, _ = train(1, tmp_path / "one", "points", data_options={"count": 2}, steps=3)
    got, _ = train(3, tmp_path / "three", "points", data_options={"count": 2}, steps=3)
    assert got["loss_last"] == pytest.approx(expected["loss_last"], rel=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_predictions_are_in_the_order_of_the_samples(size: int, tmp_path: Path) -> None:
    train(1, tmp_path / "run", "points", steps=2)
    train(1, tmp_path / "memory", "memory", steps=2)
    found = []
    for run in ("run", "memory"):
        config = PredictConfig(tmp_path / run, split="train", out=tmp_path / f"{run}.npy", threads=1)
        run_threads(size, lambda comm, config=config: predict(config, comm))
        found.append(np.load(tmp_path / f"{run}.npy"))
    assert np.array_equal(*found)
    assert len(found[0]) == len(memory().train[1])


def test_a_data_set_of_another_length_is_not_what_a_checkpoint_was_trained_on(tmp_path: Path) -> None:
    train(1, tmp_path, "points", save_every=5, steps=5)
    with pytest.raises(CollectiveError, match="data_options"):
        train(1, tmp_path, "points", save_every=5, steps=7, resume="auto", data_options={"count": 100})


def test_data_that_have_grown_are_told_as_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(1, tmp_path, "points", save_every=2, steps=2)
    monkeypatch.setattr(own_data, "points", lambda: points(104))
    with pytest.raises(CollectiveError, match="data 'own_data:points' is not, bit for bit, what"):
        train(1, tmp_path, "points", save_every=2, steps=3, resume="auto")


def test_what_cannot_be_pickled_is_told_where_workers_are_spawned(tmp_path: Path) -> None:
    from torch.utils.data import Dataset as TorchDataset

    from trainer.errors import TrainerError
    from trainer.reading.workers import Loader, Workers

    class Local(TorchDataset[int]):
        pass

    with pytest.raises(TrainerError, match=r"cannot be started by 'spawn': .*pickle.*`fork` starts need not"):
        Loader(Local(), Workers(1, "spawn"), [[0]])
