"""A checkpoint knows no strategy: what Zero saved on N ranks DataParallel takes on M, and the other way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from one_process import COUNT, backward
from test_checkpoint_slices import InMemory
from test_zero_mistakes import Awkward

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import FitConfig, TrainerError, Zero, fit
from trainer.checkpoint.slices import Slice, replicated_slices
from trainer.errors import CollectiveError
from trainer.files import on_every_rank
from trainer.rows import read_rows

RUN: dict[str, Any] = {
    "data": "linear", "model": "mlp", "model_options": {"hidden": [70, 9]}, "threads": 1, "optimizer": "adam",
    "global_batch": 20, "save_every": 4, "lr": 0.01, "clip_norm": 5.0, "bucket_mb": 0.001,
}  # fmt: skip


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in read_rows(out / "metrics.jsonl")]


@pytest.mark.parametrize(
    ("before", "saving", "after", "going_on"),
    [
        ("zero1", 2, "data_parallel", 3),
        ("data_parallel", 3, "zero1", 4),
        ("zero2", 4, "zero1", 2),
        ("zero1", 3, "single", 1),
        ("zero3", 3, "zero1", 2),
        ("data_parallel", 2, "zero3", 4),
    ],
)
def test_runs_go_on_under_another_strategy_on_other_ranks(
    before: str, saving: int, after: str, going_on: int, tmp_path: Path
) -> None:
    def train(size: int, **options: Any) -> None:
        config = FitConfig(**{**RUN, **options})
        run_threads(size, lambda comm: fit(config, comm))

    train(1, strategy="single", steps=8, out=tmp_path / "whole")
    train(saving, strategy=before, steps=4, out=tmp_path / "half")
    train(going_on, strategy=after, steps=8, resume="auto", out=tmp_path / "half")
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_slices_of_all_ranks_are_everything_once_and_come_back(size: int, stage: int) -> None:
    def rank(comm: Communicator, reader: InMemory | None) -> tuple:
        model = Awkward() if size == 1 else models[comm.rank]
        stepping = torch.optim.Adam(model.parameters(), 0.01)
        settings = {"loss_reduction": "sum", "global_count": COUNT, "bucket_bytes": 100, "stage": stage}
        parallel = Zero(model, comm, stepping, **settings)
        if reader is None:
            for seed in range(2):
                backward(model, comm, seed)
                stepping.step()
        else:
            parallel.load_slices(reader)
        slices = [(part.name, part.shape, part.offset, part.data.clone()) for part in parallel.state_slices()]
        parallel.close()
        return slices, model.state_dict()

    models = [Awkward() for _ in range(size)]
    saved = run_threads(size, rank, None)
    reader = InMemory(Slice(*part) for parts, _ in saved for part in parts)  # which checks that it is once
    assert "step" in reader.states("first.weight") and reader.states("frozen.weight") == []
    models = [Awkward() for _ in range(size)]
    for (before, state), (after, loaded) in zip(saved, run_threads(size, rank, reader), strict=True):
        torch.testing.assert_close(loaded, state, rtol=0, atol=0)
        assert [part[:3] for part in after] == [part[:3] for part in before]
        for one, other in zip(before, after, strict=True):
            assert torch.equal(one[3], other[3]), one[0]


def test_a_checkpoint_that_one_rank_cannot_load_into_shared_parameters_fails_on_all_with_the_cause() -> None:
    class Unreadable(InMemory):
        def read(self, name: str, out: torch.Tensor, offset: int = 0) -> None:
            raise TrainerError(f"cannot read {name}")

    def rank(comm: Communicator) -> str:
        model = torch.nn.Linear(6, 5)
        parallel = Zero(model, comm, torch.optim.SGD(model.parameters(), 0.1), share_params=True)
        reader = (Unreadable if comm.rank == 1 else InMemory)(whole(model))
        with pytest.raises(CollectiveError) as caught:
            on_every_rank(comm, lambda: parallel.load_slices(reader))
        comm.barrier()
        parallel.close()
        return str(caught.value)

    def whole(model: torch.nn.Module) -> Iterator[Slice]:
        return replicated_slices(model, torch.optim.SGD(model.parameters(), 0.1), 0, 1)

    assert run_threads(3, rank) == ["rank 1: cannot read model.weight"] * 3
