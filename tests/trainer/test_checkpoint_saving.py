"""Saving stalls no step, loses nothing, and ends all ranks with a clear error where it cannot be done."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import ended_runs
import pytest
import torch
from dying_disk import DyingDisk, Killed
from torch import Tensor, nn

from pycomm import Communicator
from pycomm.testing import run_threads
from tests.helpers import files_of
from trainer import FitConfig, TrainerError, fit
from trainer.checkpoint import saving, stored
from trainer.checkpoint.saving import Saver
from trainer.checkpoint.slices import Slice
from trainer.checkpoint.stored import Checkpoint, saved
from trainer.errors import CollectiveError, DivergedError, StoppedError
from trainer.models import MODELS
from trainer.rows import read_rows
from trainer.weights import trained_on

RUN: dict[str, Any] = {
    "data": "linear", "model": "linear", "optimizer": "sgd", "lr": 0.01, "threads": 1, "global_batch": 100
}  # fmt: skip


def messages(size: int, kind: type[CollectiveError], **options: Any) -> list[str]:
    return ended_runs.messages(size, FitConfig(**{**RUN, **options}), kind)


def whole(out: Path) -> list[int]:
    """The steps of the checkpoints, each without a wrong byte, and nothing beside them."""
    folders = saved(out / "checkpoints")
    for folder in folders.values():
        Checkpoint(folder).verify()
    assert set((out / "checkpoints").iterdir()) == set(folders.values())
    return list(folders)


def halves(x: Tensor, comm: Communicator) -> list[Slice]:
    first, end = (len(x) * part // comm.size for part in (comm.rank, comm.rank + 1))
    return [Slice("model.x", (len(x),), first, x[first:end])]


# ---- beside the steps


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_save_returns_before_it_is_written_and_has_what_was_there_then(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def slow(*arguments: Any) -> Any:
        assert gate.wait(60)
        return stored.write_part(*arguments)

    monkeypatch.setattr(saving, "write_part", slow)

    def rank(comm: Communicator) -> bool:
        x = torch.arange(10.0)
        with Saver(tmp_path, comm, 1, 2, lambda: None) as saver:
            saver.save(1, halves(x, comm), {})
            x.zero_()
            early = saver.written
            comm.barrier()
            gate.set()
            saver.finish(1)
        return early

    assert run_threads(size, rank) == [False] * size
    with Checkpoint(tmp_path / "checkpoints" / "step-000001") as checkpoint:
        assert torch.equal(checkpoint.tensor("model.x"), torch.arange(10.0))


def test_the_next_save_waits_for_the_one_before(tmp_path: Path) -> None:
    def rank(comm: Communicator) -> list[int]:
        x, found = torch.zeros(7), []
        with Saver(tmp_path, comm, 1, 2, lambda: None) as saver:
            for step in range(1, 5):
                saver.save(step, halves(x, comm), {})
                comm.barrier()
                found.append(max(saved(tmp_path / "checkpoints"), default=0))
                comm.barrier()
            saver.finish(4)
        return found

    assert run_threads(3, rank) == [[0, 1, 2, 3]] * 3
    assert whole(tmp_path) == [3, 4]


def test_a_checkpoint_is_there_as_soon_as_all_ranks_know_that_all_have_written(tmp_path: Path) -> None:
    """Not only with the next save, which may be an hour away."""
    seen = []

    def rank(comm: Communicator) -> None:
        with Saver(tmp_path, comm, 1, 2, lambda: None) as saver:
            saver.save(1, halves(torch.zeros(7), comm), {})
            pending = saver._pending
            assert pending is not None
            pending.written.result()
            assert saver.written
            comm.barrier()
            saver.all_written()
            assert not saver.written
            if pending.published is not None:
                pending.published.result()
                seen.extend(saved(tmp_path / "checkpoints"))
            saver.finish(1)

    run_threads(3, rank)
    assert seen == [1]


def test_a_run_publishes_its_checkpoints_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is faster than a step here; the last step's save has none after it."""
    gathered: list[bool] = []
    written, finish = Saver.written, Saver.finish

    def fast(self: Saver) -> bool:
        if self._pending is not None:
            self._pending.written.result()
        return bool(written.fget(self))  # type: ignore[attr-defined]

    def finishing(self: Saver, step: int) -> None:
        if self._pending is not None:
            gathered.append(self._pending.gathered)
        finish(self, step)

    monkeypatch.setattr(Saver, "written", property(fast))
    monkeypatch.setattr(Saver, "finish", finishing)
    config = FitConfig(**RUN, out=tmp_path, steps=9, save_every=3)
    run_threads(2, lambda comm: fit(config, comm))
    assert gathered == [True] * 4 + [False] * 2


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_are_kept(keep: int, tmp_path: Path) -> None:
    config = FitConfig(**RUN, out=tmp_path, steps=11, save_every=2, keep=keep)
    run_threads(2, lambda comm: fit(config, comm))
    assert whole(tmp_path) == [6, 8, 10, 11][-keep:]


def test_without_save_every_there_is_no_folder(tmp_path: Path) -> None:
    run_threads(2, lambda comm: fit(FitConfig(**RUN, out=tmp_path, steps=3), comm))
    assert not (tmp_path / "checkpoints").exists()


def test_a_strategy_without_slices_is_refused_before_it_trains(tmp_path: Path) -> None:
    from trainer import STRATEGIES, Strategy

    @STRATEGIES.register("test_without_slices")
    class Without(Strategy):
        def __init__(self, *_: object) -> None: ...

        def step(self) -> None: ...

    words = "save_every: strategy 'test_without_slices' cannot be saved: it has no state_slices()"
    options = {"strategy": "test_without_slices", "out": tmp_path / "run", "save_every": 2, "steps": 3}
    assert messages(2, CollectiveError, **options) == [words] * 2
    assert not (tmp_path / "run").exists()


# ---- what cannot be written


def test_a_full_disk_ends_all_ranks_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stored.write_tensors

    def full(path: Path, tensors: Any) -> None:
        if "step-000004" in str(path) and "part-1" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, tensors)

    monkeypatch.setattr(stored, "write_tensors", full)
    said = messages(3, StoppedError, out=tmp_path, steps=50, save_every=2)
    assert len(set(said)) == 1
    folder = tmp_path / "checkpoints"
    assert f"rank 1: cannot write {folder}/step-000004.partial/part-1.safetensors: No space left" in said[0]
    assert f"; the last checkpoint is {folder}/step-000002; " in said[0]
    assert f"{tmp_path}/last_good.safetensors has the parameters after step" in said[0]
    assert whole(tmp_path) == [2]
    monkeypatch.setattr(stored, "write_tensors", real)
    config = FitConfig(**RUN, out=tmp_path, steps=6, save_every=2, resume="auto")
    resumed = run_threads(3, lambda comm: fit(config, comm))
    plain = FitConfig(**RUN, out=tmp_path / "plain", steps=6)
    expected = run_threads(3, lambda comm: fit(plain, comm))
    assert resumed[0]["param_sha256"] == expected[0]["param_sha256"]


def test_a_write_that_fails_while_a_step_asks_for_trouble_ends_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()
    trouble = Saver.trouble

    def full(path: Path, tensors: Any) -> None:
        assert asked.wait(60)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def failing_behind(self: Saver) -> TrainerError | None:
        found: TrainerError | None = trouble.fget(self)  # type: ignore[attr-defined]
        if self._pending is not None:
            asked.set()
            self._pending.written.exception()
        return found

    monkeypatch.setattr(stored, "write_tensors", full)
    monkeypatch.setattr(Saver, "trouble", property(failing_behind))
    said = messages(2, StoppedError, out=tmp_path, steps=50, save_every=2)
    assert len(set(said)) == 1
    assert "part-0.safetensors: No space left" in said[0]
    assert whole(tmp_path) == []


def test_a_file_that_cannot_be_read_back_ends_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def failing(path: Path, mode: str = "r", *more: Any, **options: Any) -> Any:
        if path.name == "part-1.safetensors" and mode == "rb":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(path, mode, *more, **options)

    monkeypatch.setattr(Path, "open", failing)
    said = messages(2, StoppedError, out=tmp_path, steps=9, save_every=2)
    assert "rank 1: cannot read " in said[0]
    assert "part-1.safetensors: Input/output error" in said[0]
    assert whole(tmp_path) == []


def test_files_that_may_not_be_that_long_are_an_error_without_leftovers(tmp_path: Path) -> None:
    options = {"model": "mlp", "model_options": {"hidden": 4000}, "out": tmp_path, "save_every": 1}
    with files_of(16384):
        said = messages(2, StoppedError, **options, steps=3)
    assert "part-" in said[0]
    assert "File too large" in said[0]
    assert "; there is no checkpoint; " in said[0]
    assert whole(tmp_path) == []


def test_a_row_that_could_not_be_written_keeps_its_checkpoint_from_being_one(tmp_path: Path) -> None:
    """It could not be resumed from: the metrics would have a hole."""
    with files_of(8192):
        said = messages(2, StoppedError, out=tmp_path, steps=200, save_every=1)
    assert "metrics.jsonl: File too large" in said[0]
    assert whole(tmp_path)[-1] <= len(read_rows(tmp_path / "metrics.jsonl"))
    config = FitConfig(**RUN, out=tmp_path, steps=70, save_every=1, resume="auto")
    run_threads(2, lambda comm: fit(config, comm))
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == list(range(1, 71))


def test_a_folder_that_is_not_shared_is_said(tmp_path: Path) -> None:
    def rank(comm: Communicator) -> str:
        out = tmp_path / str(comm.rank)
        out.mkdir()
        (out / "checkpoints" / "step-000001.partial").mkdir(parents=True)
        if comm.rank == 0:
            shutil.rmtree(out / "checkpoints")
        saver = Saver(out, comm, 1, 2, lambda: None)
        saver.save(1, halves(torch.zeros(4), comm), {})
        with pytest.raises(StoppedError) as caught:
            saver.finish(1)
        return str(caught.value)

    for said in run_threads(2, rank):
        assert "part-1.safetensors is missing: another rank wrote it: is --out one folder for all" in said


# ---- numbers that are not finite


def test_parameters_that_are_not_finite_never_become_a_checkpoint(tmp_path: Path) -> None:
    """One step with lr 1e38 leaves infinite parameters, of which the next step's loss would tell."""
    said = messages(2, StoppedError, out=tmp_path, steps=9, save_every=1, lr=1e38)
    assert "; there is no checkpoint; " in said[0]
    assert whole(tmp_path) == []


class Masked(nn.Linear):
    """Has a buffer as a causal mask is one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("mask", torch.full((5, 5), -torch.inf).triu(1))


@pytest.mark.parametrize("strategy", ["data_parallel", "zero1"])
def test_a_buffer_that_is_infinite_is_saved_and_resumed(strategy: str, tmp_path: Path) -> None:
    if "masked" not in MODELS.names():
        MODELS.register("masked")(Masked)
    options = {**RUN, "model": "masked", "strategy": strategy, "out": tmp_path, "save_every": 2}
    run_threads(2, lambda comm: fit(FitConfig(**options, steps=4), comm))
    assert whole(tmp_path) == [2, 4]
    with Checkpoint(tmp_path / "checkpoints" / "step-000004") as checkpoint:
        assert torch.equal(checkpoint.tensor("model.mask"), Masked(1, 1).mask)
    run_threads(2, lambda comm: fit(FitConfig(**options, steps=5, resume="auto"), comm))
    assert whole(tmp_path) == [4, 5]


def test_a_run_that_diverges_keeps_what_was_being_saved_and_says_so(tmp_path: Path) -> None:
    said = messages(2, DivergedError, out=tmp_path, steps=50, save_every=3, lr=1e5)
    steps = whole(tmp_path)
    assert steps
    assert f"; the last checkpoint is {tmp_path}/checkpoints/step-{steps[-1]:06d}; " in said[0]
    assert trained_on(tmp_path / "last_good.safetensors")


# ---- killed


KILLED = {
    "steps": 6,
    "save_every": 2,
    "keep": 1,
    "eval_every": 1,
    "data_options": {"validation_fraction": 0.1},
}
EVERY = 1 if os.environ.get("PYCOMM_KILL_POINTS") == "all" else 17


def outcome(size: int, out: Path, **options: Any) -> tuple[str, list[float]]:
    """Hash of the parameters, and losses."""
    config = FitConfig(**{**RUN, **KILLED, **options}, out=out)
    summary = run_threads(size, lambda comm: fit(config, comm))[0]
    return summary["param_sha256"], [row["loss"] for row in read_rows(out / "metrics.jsonl")]


@pytest.mark.parametrize("size", [1, 2])
def test_killed_at_any_call_a_run_has_its_last_checkpoint_and_goes_on(size: int, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        disk = DyingDisk(patch, math.inf)
        expected = outcome(size, tmp_path / "uninterrupted")
    for kill in range(size, len(disk.seen), EVERY):
        out = tmp_path / str(kill)
        with pytest.MonkeyPatch.context() as patch:
            disk = DyingDisk(patch, kill)
            with contextlib.suppress(Killed):  # the first run made a call or two for what it imported
                outcome(size, out)
            disk.settled()
        named = [
            paths[1] for name, paths in disk.seen if name == "rename" and not paths[1].endswith("partial")
        ]
        folders = saved(out / "checkpoints")
        for folder in folders.values():
            Checkpoint(folder).verify()
        assert bool(folders) == bool(named), f"killed at call {kill}"
        if named:
            assert str(max(folders.values())) == named[-1]
        assert outcome(size, out, resume="auto") == expected
        assert whole(out) == [6]


def test_nothing_gets_its_name_before_it_is_on_the_disk(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        disk = DyingDisk(patch, math.inf)
        config = FitConfig(**{**RUN, **KILLED, "keep": 9}, out=tmp_path)
        run_threads(1, lambda comm: fit(config, comm))
    synced: set[str] = set()
    renamed = []
    for name, paths in disk.seen:
        if name == "fsync":
            synced.add(paths[0])
        elif name == "write":
            synced.discard(paths[0])
        elif name in ("rename", "replace"):
            assert paths[0] in synced, f"{paths} was not yet on the disk"
            renamed.append(Path(paths[1]).name)
            synced.discard(str(Path(paths[1]).parent))
    assert {"index.json", "part-0.safetensors", "step-000002", "step-000004", "step-000006"} <= set(renamed)
    assert str(tmp_path / "checkpoints") in synced  # of the last name, too
    first = disk.seen.index(("rename", _names(tmp_path, 2)))
    assert ("fsync", (str(tmp_path / "metrics.jsonl"),)) in disk.seen[:first]


def test_a_copy_of_the_best_weights_is_on_the_disk_before_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system without links."""

    def without(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", without)
    with pytest.MonkeyPatch.context() as patch:
        disk = DyingDisk(patch, math.inf)
        run_threads(1, lambda comm: fit(FitConfig(**{**RUN, **KILLED}, out=tmp_path), comm))
    named = disk.seen.index(("rename", _names(tmp_path, 2)))
    copy = str(tmp_path / "checkpoints" / "step-000002.partial" / "best.safetensors")
    assert ("fsync", (copy,)) in disk.seen[:named]


def _names(out: Path, step: int) -> tuple[str, str]:
    folder = out / "checkpoints" / f"step-{step:06d}"
    return f"{folder}.partial", str(folder)


def test_the_best_weights_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    """The folder of the run has later ones when the run is killed."""
    options = {**RUN, "data_options": {"validation_fraction": 0.1}, "eval_every": 1, "lr": 0.001}
    config = FitConfig(**options, out=tmp_path, steps=6, save_every=3)
    run_threads(2, lambda comm: fit(config, comm))
    best = {}
    for step in (3, 6):
        path = str(tmp_path / "checkpoints" / f"step-{step:06d}")
        again = FitConfig(**options, out=tmp_path / str(step), steps=step, resume=path)
        best[step] = run_threads(2, lambda comm, config=again: fit(config, comm))[0]["best"]  # type: ignore[misc]
        with pytest.raises(TrainerError, match="is of another model"):
            _load_wrong(tmp_path / str(step) / "best.safetensors")
    assert [best[step]["step"] for step in (3, 6)] == [3, 6]


def _load_wrong(path: Path) -> None:
    from torch import nn

    from trainer.weights import load_weights

    load_weights(path, nn.Linear(2, 2))
