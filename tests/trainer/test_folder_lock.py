"""Two runs never write to one folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer import FitConfig, TrainerError, fit, folder_lock
from trainer.folder_lock import FolderLock


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "WAIT_S", 0.0)


def test_one_takes_it_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "then"
    with FolderLock(folder) as first, FolderLock(folder) as second:
        first.take()
        with pytest.raises(TrainerError, match="then: another run is writing there"):
            second.take()
    with FolderLock(folder) as third:
        third.take()


def test_a_second_run_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    import pycomm

    config = FitConfig(
        data="linear", model="linear", optimizer="sgd", steps=1, threads=1, strategy="single", out=tmp_path
    )
    fit(config, pycomm.init())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with FolderLock(tmp_path) as other:
        other.take()
        with pytest.raises(TrainerError, match="another run is writing there"):
            fit(config, pycomm.init())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    fit(config, pycomm.init())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with FolderLock(tmp_path / "file" / "folder") as lock, pytest.raises(TrainerError, match="cannot write"):
        lock.take()
