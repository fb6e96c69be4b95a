from __future__ import annotations

import pkgutil

import pytest

import trainer
from trainer.data import DATA
from trainer.errors import TrainerError
from trainer.models import MODELS
from trainer.registry import Registry
from trainer.strategy import STRATEGIES


@pytest.mark.parametrize(
    ("registry", "package"),
    [(DATA, "trainer.data"), (MODELS, "trainer.models"), (STRATEGIES, "trainer.strategies")],
)
def test_every_file_of_a_plugin_folder_registers_its_name(registry: Registry, package: str) -> None:
    folder = package.rpartition(".")[2]
    files = {module.name for module in pkgutil.iter_modules([f"{trainer.__path__[0]}/{folder}"])}
    assert files, package
    assert files <= set(registry.names())


@pytest.mark.parametrize("registry", [DATA, MODELS, STRATEGIES])
def test_an_unknown_name_lists_what_exists(registry: Registry) -> None:
    with pytest.raises(TrainerError) as caught:
        registry.build("nonesuch")
    assert "nonesuch" in str(caught.value)
    for name in registry.names():
        assert name in str(caught.value)


def test_an_unknown_option_lists_what_the_factory_takes() -> None:
    with pytest.raises(TrainerError, match=r"'mlp'.*'widht'.*inputs, outputs, hidden"):
        MODELS.build("mlp", widht=3)


def test_a_name_can_be_taken_once() -> None:
    registry: Registry[int] = Registry("number", "trainer.models")
    registry.register("one")(lambda: 1)
    with pytest.raises(TrainerError, match="number 'one' is registered twice"):
        registry.register("one")(lambda: 2)


def test_every_public_name_can_be_imported() -> None:
    for name in trainer.__all__:
        assert getattr(trainer, name).__module__.startswith("trainer"), name


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonesuch"):
        trainer.nonesuch  # noqa: B018
