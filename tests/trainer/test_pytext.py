from __future__ import annotations

import math
import os
import sysconfig
from pathlib import Path

import pytest
import torch

from trainer.data import DATA, NEXT_BYTE, Dataset
from trainer.data import pytext as module
from trainer.data.pytext import LEFT_OUT, source_files
from trainer.errors import TrainerError

LENGTH, LIMIT = 16, 20_000


def small(**options: object) -> Dataset:
    return DATA.build("pytext", seed=1, **{"length": LENGTH, "limit_bytes": LIMIT, **options})


def text_of(split: tuple[torch.Tensor, torch.Tensor]) -> bytes:
    inputs, targets = split
    return bytes([*inputs.flatten().tolist(), targets[-1, -1].item()])


def test_targets_are_the_inputs_one_byte_later() -> None:
    for inputs, targets in small(validation_fraction=0.1).splits().values():
        assert inputs.shape == targets.shape
        assert inputs.shape[1] == LENGTH
        assert inputs.dtype == torch.uint8
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert torch.equal(inputs[1:, 0], targets[:-1, -1])  # the next window begins where this one ends


def test_the_splits_are_one_text_cut_apart() -> None:
    data = small(test_fraction=0.1, validation_fraction=0.2)
    files = source_files(Path(sysconfig.get_path("stdlib")))
    order = module.np.random.default_rng(1).permutation(len(files))
    text = b"".join(files[index].read_bytes() + b"\0" for index in order[:200])[:LIMIT]
    cuts = {"train": (0, 14_000), "validation": (14_000, 18_000), "test": (18_000, 20_000)}
    for name, split in data.splits().items():
        part = text[slice(*cuts[name])]
        whole = (len(part) - 1) // LENGTH * LENGTH + 1
        assert text_of(split) == part[:whole], name


def test_the_text_follows_the_seed_and_nothing_else() -> None:
    one, same = small(), small()
    assert torch.equal(one.train[0], same.train[0])
    assert not torch.equal(
        one.train[0], DATA.build("pytext", seed=2, length=LENGTH, limit_bytes=LIMIT).train[0]
    )


def test_there_is_no_validation_split_unless_asked_for() -> None:
    assert small().validation is None
    assert torch.equal(small().test[0], small(validation_fraction=0.3).test[0])


def test_source_files_are_the_librarys_own(tmp_path: Path) -> None:
    for name in ("b.py", "a/c.py", "a.py", "test/x.py", "a/tests/y.py", "site-packages/z.py", "a/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    found = [str(path.relative_to(tmp_path)) for path in source_files(tmp_path)]
    assert found == ["a/c.py", "a.py", "b.py"]
    real = source_files(Path(os.__file__).parent)
    assert Path(os.__file__) in real
    assert not LEFT_OUT.intersection(*(path.parts for path in real))


def test_a_python_without_its_source_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="no source files in"):
        source_files(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length and limit_bytes of 1 or more, got 0"),
        ({"limit_bytes": 0}, "got 16 and 0"),
        ({"limit_bytes": 100}, r"more than 16 bytes \(length\) for test, got 5"),
    ],
)
def test_windows_that_do_not_fit_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        small(**options)


def test_the_task_counts_tokens_and_measures_bits() -> None:
    targets = torch.randint(256, (3, 5), dtype=torch.uint8)
    assert NEXT_BYTE.counts(targets).tolist() == [5, 5, 5]
    uniform = torch.zeros(3, 5, 256)
    assert NEXT_BYTE.loss(uniform, targets).item() == pytest.approx(15 * math.log(256))
    assert NEXT_BYTE.measures["bits_per_byte"](uniform, targets).item() == pytest.approx(15 * 8)
    certain = torch.nn.functional.one_hot(targets.long(), 256).float()
    assert NEXT_BYTE.measures["accuracy"](certain, targets).item() == 15
    assert torch.equal(NEXT_BYTE.predict(certain), targets.long())
