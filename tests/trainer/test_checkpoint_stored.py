"""What is torn, altered, missing or foreign is refused by file and reason; nothing is executed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ended_runs import messages
from safetensors.torch import load_file, save_file

from pycomm.testing import run_threads
from trainer import FitConfig, TrainerError, fit
from trainer.checkpoint import stored
from trainer.checkpoint.resuming import FREE, kept_options
from trainer.checkpoint.slices import Slice
from trainer.checkpoint.stored import Checkpoint, last_good, publish, saved, write_part
from trainer.sampler import Sampler

RUN: dict[str, Any] = {
    "data": "linear", "model": "mlp", "model_options": {"hidden": 8}, "threads": 1, "global_batch": 100,
    "save_every": 2, "steps": 6, "keep": 9,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks with checkpoints after steps 2, 4 and 6."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole") / "run"
    run_threads(2, lambda comm: fit(FitConfig(**RUN, out=out), comm))
    return out


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def refusal(size: int, out: Path, **options: Any) -> str:
    """What all ranks say to a run; the folder is as before."""
    config = FitConfig(**{**RUN, "out": out, "resume": "auto", "steps": 8, **options})
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    said = set(messages(size, config))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert len(said) == 1
    return said.pop()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def sealed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes an index as somebody would who knows how its hash is made."""
    index = json.loads(path.read_text())
    del index["sha256"]
    change(index)
    path.write_text(json.dumps({**index, "sha256": stored._index_sha256(index)}))


def test_a_folder_has_what_the_index_says(whole: Path) -> None:
    folder = saved(whole / "checkpoints")[6]
    index = json.loads((folder / "index.json").read_text())
    assert {path.name for path in folder.iterdir()} == {*index["files"], "index.json"}
    assert set(index["files"]) == {"part-0.safetensors", "part-1.safetensors"}
    for file in index["files"]:
        parts = load_file(folder / file)
        named = {
            f"{name}[{first}:{first + count}]"
            for name, tensor in index["tensors"].items()
            for first, count, where in tensor["slices"]
            if where == file
        }
        assert set(parts) == named
    assert "world" not in (folder / "index.json").read_text()
    with Checkpoint(folder) as checkpoint:
        for name, tensor in load_file(whole / "model.safetensors").items():
            assert torch.equal(checkpoint.tensor(f"model.{name}"), tensor)


def tear(folder: Path) -> None:
    path = folder / "part-1.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "altered": (
        lambda folder: flip(folder / "part-1.safetensors"),
        r"step-000006/part-1.safetensors is damaged: expected sha256 \w{64}, got \w{64}",
    ),
    "torn": (tear, r"step-000006/part-1.safetensors is damaged: expected \d+ bytes, got \d+"),
    "missing": (
        lambda folder: (folder / "part-0.safetensors").unlink(),
        r"step-000006/part-0.safetensors is missing: the checkpoint is not whole",
    ),
    "index altered": (
        lambda folder: (folder / "index.json").write_text(
            (folder / "index.json").read_text().replace('"step": 6', '"step": 5')
        ),
        r"step-000006/index.json is damaged: expected sha256 \w{64}, got",
    ),
    "index torn": (
        lambda folder: (folder / "index.json").write_text((folder / "index.json").read_text()[:-9]),
        r"step-000006/index.json is damaged: .* \(char",
    ),
    "index missing": (
        lambda folder: (folder / "index.json").unlink(),
        r"step-000006/index.json does not exist: expected the folder of a checkpoint",
    ),
    "foreign": (
        lambda folder: (folder / "index.json").write_text('{"metadata": {}, "weight_map": {}}'),
        r"step-000006/index.json is none of this program's: expected format 'pycomm checkpoint'",
    ),
    "another version": (
        lambda folder: sealed(folder / "index.json", lambda index: index.update(version=2)),
        r"step-000006/index.json has version 2: expected 1",
    ),
    "a slice missing": (
        lambda folder: sealed(
            folder / "index.json", lambda index: index["tensors"]["model.0.weight"]["slices"].pop()
        ),
        r"step-000006/index.json: model.0.weight has \d+ elements, expected 8",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_the_last_good_one_named(damage: str, out: Path) -> None:
    spoil, words = DAMAGE[damage]
    spoil(out / "checkpoints" / "step-000006")
    flip(out / "checkpoints" / "step-000004" / "part-0.safetensors")
    message = refusal(3, out)
    assert re.search(words, message), message
    good = out / "checkpoints" / "step-000002"
    assert message.endswith(f"; the last good one is {good}: move step-000006 away and resume from that")


def test_the_last_good_one_can_be_gone_on_from_once_the_damaged_is_away(out: Path) -> None:
    flip(out / "checkpoints" / "step-000006" / "part-0.safetensors")
    (out / "checkpoints" / "step-000006").rename(out / "away")
    config = FitConfig(**RUN, out=out, resume="auto")
    assert run_threads(2, lambda comm: fit(config, comm)["steps"]) == [6, 6]
    assert list(saved(out / "checkpoints")) == [2, 4, 6]


def test_without_a_good_one_that_is_said(out: Path) -> None:
    for folder in saved(out / "checkpoints").values():
        flip(folder / "part-0.safetensors")
    assert refusal(2, out).endswith("; there is no earlier good one")
    assert last_good(out / "checkpoints", 7) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"model_options": {"hidden": 9}},
            "model_options: {} is of a run with {{'hidden': 8}}, this one has ",
        ),
        ({"model": "linear", "model_options": {}}, "model: {} is of a run with 'mlp', this one has 'linear'"),
        ({"optimizer": "sgd"}, "optimizer: {} is of a run with 'adam', this one has 'sgd'"),
        ({"optimizer_options": {"betas": [0.8, 0.9]}}, "optimizer_options: {} is of a run with {{}}"),
        ({"data_options": {"count": 999}}, "data_options: {} is of a run with {{}}, this one has {{'count'"),
        ({"global_batch": 50}, "global_batch: {} is of a run with 100, this one has 50"),
        (
            {"global_batch": None, "batch_per_rank": 100},
            "global_batch: {} is of a run with 100, this one has 2",
        ),
        ({"lr": 0.1}, "lr: {} is of a run with 0.005, this one has 0.1"),
        ({"seed": 1}, "seed: {} is of a run with 0, this one has 1"),
        ({"schedule": "cosine"}, "schedule: {} is of a run with 'constant', this one has 'cosine'"),
    ],
)
def test_an_option_that_decides_the_numbers_may_not_change(
    options: dict[str, Any], words: str, out: Path
) -> None:
    checkpoint = out / "checkpoints" / "step-000006"
    assert words.format(checkpoint) in refusal(2, out, **options)


def test_options_that_are_not_said_to_be_free_are_kept() -> None:
    names = {option.name for option in dataclasses.fields(FitConfig)}
    assert names > FREE
    assert names - FREE - {"batch_per_rank"} == kept_options(FitConfig(), Sampler(9, 3, 0)).keys()


def test_a_learning_rate_that_is_the_default_may_be_written_out(out: Path) -> None:
    config = FitConfig(**RUN, out=out, resume="auto", lr=0.005)
    run_threads(2, lambda comm: fit(config, comm))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda index: index.update(data_sha256="0" * 64), "data 'linear' is not, bit for bit, what "),
        (lambda index: index["sampler"].update(order_sha256="0" * 64), "takes the samples in another order"),
        (
            lambda index: index["tensors"].pop("model.0.bias"),
            r"expected model.0.bias as torch.float32 (8,), ",
        ),
        (
            lambda index: index["tensors"].update(
                {"optimizer.9.bias.step": index["tensors"]["model.2.bias"]}
            ),
            "it has optimizer.9.bias.step but no such parameter",
        ),
        (lambda index: index["tensors"]["model.0.bias"].update(dtype="Tensor"), "Tensor, which is no dtype"),
        (
            lambda index: index["tensors"]["optimizer.0.bias.step"]["slices"][0].__setitem__(0, 1),
            "optimizer.0.bias.step has a slice at 1, expected one at 0",
        ),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    change: Callable[[dict[str, Any]], object], words: str, out: Path
) -> None:
    sealed(out / "checkpoints" / "step-000006" / "index.json", change)
    assert words in refusal(2, out)


def test_an_index_cannot_name_files_elsewhere(out: Path) -> None:
    secret = out / "checkpoints" / "part-9.safetensors"
    save_file({"x": torch.zeros(1)}, secret)
    folder = out / "checkpoints" / "step-000006"
    sealed(
        folder / "index.json",
        lambda index: index["files"].update({"../part-9.safetensors": stored.fingerprint(secret)}),
    )
    with pytest.raises(TrainerError, match=r"step-000006/part-9.safetensors is missing"):
        Checkpoint(folder)


def test_a_new_run_leaves_the_checkpoints_of_another_alone(out: Path) -> None:
    assert "has checkpoints of an earlier run, up to step 6: --resume auto goes on" in refusal(
        2, out, resume="none"
    )


def test_an_earlier_checkpoint_is_not_gone_on_from_beneath_later_ones(out: Path) -> None:
    earlier = str(out / "checkpoints" / "step-000002")
    assert f"up to step 6, later than {earlier}: move those away" in refusal(2, out, resume=earlier)


def test_two_runs_do_not_mix_in_one_folder(out: Path, whole: Path) -> None:
    other = str(whole / "checkpoints" / "step-000006")
    assert f"has checkpoints of another run than {other}" in refusal(2, out, resume=other)


def test_a_path_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    message = refusal(2, tmp_path / "new", resume=str(tmp_path))
    assert (
        message
        == f"{tmp_path}/index.json does not exist: expected the folder of a checkpoint, as step-000100"
    )


def test_rows_that_are_missing_are_said(out: Path) -> None:
    rows = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(rows[:4]))
    assert refusal(2, out).endswith("metrics.jsonl: expected rows up to step 6, got 4 rows")
    (out / "metrics.jsonl").write_text("".join(rows[:2] + rows[3:]))
    assert refusal(2, out).endswith("metrics.jsonl, line 3: expected the row of step 3, got 4's")


def test_a_row_that_was_being_written_at_the_end_does_not_matter(out: Path) -> None:
    whole = (out / "metrics.jsonl").read_text()
    (out / "metrics.jsonl").write_text(whole + '{"step": 7, "lo')
    config = FitConfig(**{**RUN, "steps": 7}, out=out, resume="auto")
    run_threads(2, lambda comm: fit(config, comm))
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert lines[:6] == whole.splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_any_range_is_read_from_any_slices(dtype: torch.dtype, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(stored, "READ_COUNT", 7)
    data = (torch.arange(60) % 5).to(dtype)
    cuts = [0, 1, 1, 17, 40, 60]
    records = []
    for number, (first, end) in enumerate(itertools.pairwise(cuts)):
        part = Slice("strategy.x", (6, 10), first, data[first:end])
        records.append(write_part(tmp_path / "step-000001.partial", number, [part]))
    publish(tmp_path / "step-000001", {"step": 1}, reversed(records))
    with Checkpoint(tmp_path / "step-000001") as checkpoint:
        for first in range(0, 60, 3):
            for end in range(first, 61, 4):
                out = torch.empty(end - first, dtype=dtype)
                checkpoint.read("strategy.x", out, first)
                assert torch.equal(out, data[first:end])
        assert torch.equal(checkpoint.tensor("strategy.x"), data.view(6, 10))
        for wrong in (torch.empty(2, dtype=torch.float32), torch.empty(61, dtype=dtype)):
            with pytest.raises(TrainerError, match=r"strategy.x is .* of 60 elements; asked for"):
                checkpoint.read("strategy.x", wrong)
