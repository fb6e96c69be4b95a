from __future__ import annotations

import re
from pathlib import Path

import pytest

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer.errors import CollectiveError, TrainerError
from trainer.files import on_every_rank, on_rank_0, replacing


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    for text in ("first", "second"):
        with replacing(path) as partial:
            partial.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_after_an_exception_the_old_file_is_there_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ValueError, match="half way"), replacing(path) as partial:
        partial.write_text("ne")
        raise ValueError("half way")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.with_name("file.partial").symlink_to("/dev/full")
    message = f"cannot write {re.escape(str(path))}: No space left on device"
    with pytest.raises(TrainerError, match=message), replacing(path) as partial:
        partial.write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    path = tmp_path / "taken" / "file"
    with pytest.raises(TrainerError, match=r"cannot write .*taken/file: File exists"), replacing(path):
        pass


@pytest.mark.parametrize("size", [1, 3])
def test_rank_0_acts_for_all(size: int) -> None:
    done = []

    def rank(comm: Communicator) -> int:
        on_rank_0(comm, lambda: done.append(comm.rank))
        return len(done)  # nobody comes past it before it is done

    assert run_threads(size, rank) == [1] * size
    assert done == [0]


@pytest.mark.parametrize("size", [1, 3])
def test_what_fails_on_rank_0_fails_everywhere_and_leaves_the_communicator_sound(size: int) -> None:
    def action() -> None:
        raise TrainerError("no room für mehr")

    def rank(comm: Communicator) -> str:
        with pytest.raises(CollectiveError) as caught:
            on_rank_0(comm, action)
        comm.barrier()
        return str(caught.value)

    expected = "no room für mehr" if size == 1 else "rank 0: no room für mehr"
    assert run_threads(size, rank) == [expected] * size


@pytest.mark.parametrize("failing", [(0,), (1, 2), (2,), (0, 1, 2)])
def test_what_fails_on_some_ranks_fails_everywhere_with_the_first_ones_message(
    failing: tuple[int, ...],
) -> None:
    def rank(comm: Communicator) -> str:
        def action() -> int:
            if comm.rank in failing:
                raise TrainerError(f"no {comm.rank}")
            return comm.rank

        with pytest.raises(CollectiveError) as caught:
            on_every_rank(comm, action)
        assert on_every_rank(comm, lambda: comm.rank) == comm.rank  # it is still sound
        return str(caught.value)

    prefix = f"rank {failing[0]}: " if len(failing) < 3 else ""
    assert run_threads(3, rank) == [f"{prefix}no {failing[0]}"] * 3
