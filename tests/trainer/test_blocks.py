"""Which parameters belong together, by default and by choice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from trainer import MODELS, TrainerError
from trainer.blocks import Members, gathered_at_once, partition


def names(members: list[Members]) -> list[tuple[str, int]]:
    return [(part.name, len(part.parameters)) for part in members]


def layer() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))


def nested() -> nn.Module:
    """Lists in lists, which are never called, and a Sequential that is."""
    model = nn.Module()
    model.stages = nn.ModuleList([nn.ModuleList([layer(), nn.Linear(3, 3)]), nn.ModuleDict({"a": layer()})])
    model.stem = nn.Linear(3, 3)
    model.body = nn.Module()
    model.body.layers = nn.Sequential(nn.ReLU(), layer())
    return model


def test_a_gpt_is_its_layers_and_the_rest() -> None:
    gpt = MODELS.build("gpt", vocabulary=5, context=4, width=8, heads=2, layers=3)
    assert names(partition(gpt)) == [("", 5), *((f"blocks.{i}", 8) for i in range(3))]


def test_a_sequential_is_its_layers_and_those_without_parameters_are_none() -> None:
    assert names(partition(layer())) == [("", 0), ("0", 2), ("2", 2)]


def test_a_model_without_containers_is_its_root() -> None:
    assert names(partition(nn.Linear(3, 3))) == [("", 2)]


def test_what_is_never_called_is_no_block() -> None:
    expected = [("", 2), ("stages.0.0", 4), ("stages.0.1", 2), ("stages.1.a", 4), ("body.layers.1", 4)]
    assert names(partition(nested())) == expected


def test_what_several_blocks_share_is_the_roots() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    assert names(partition(model)) == [("", 1), ("0", 1), ("1", 2), ("2", 1)]
    again = nn.Linear(3, 3)  # one module in two places
    assert names(partition(nn.Sequential(again, nn.Linear(3, 3), again))) == [("", 2), ("1", 2)]


def test_every_parameter_is_somewhere_once() -> None:
    model = nested()
    found = [id(parameter) for part in partition(model) for parameter in part.parameters]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())


@pytest.mark.parametrize(
    "choice",
    [["Sequential"], lambda module: isinstance(module, nn.Sequential), "its own"],
)
def test_the_outermost_modules_that_are_chosen(choice: list[str] | Callable[[nn.Module], bool] | str) -> None:
    model = nested()
    chosen = [model.stages[0][0], model.body.layers, model.stages[1]["a"]] if choice == "its own" else choice
    expected = [("", 4), ("stages.0.0", 4), ("stages.1.a", 4), ("body.layers", 4)]
    assert names(partition(model, chosen)) == expected


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (["Conv2d"], r"expected classes of the model's modules, got \['Conv2d'\]"),
        (lambda _: False, "the function holds for no module"),
        ([], "the list is empty"),
        ([nn.Linear(3, 3)], "expected modules within the model, got Linear"),
        ([3], "expected modules within the model, got int"),
    ],
)
def test_choices_of_nothing_are_refused(choice: object, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        partition(layer(), choice)


def test_a_module_within_another_is_refused() -> None:
    model = nested()
    with pytest.raises(TrainerError, match=r"stages.0.0.2 lies within stages.0.0"):
        partition(model, [model.stages[0][0], model.stages[0][0][2]])


def test_at_the_height_of_a_step_the_root_and_two_blocks_are_there() -> None:
    assert gathered_at_once([10]) == 10
    assert gathered_at_once([10, 5]) == 15
    assert gathered_at_once([10, 5, 1, 7, 6]) == 10 + 7 + 6
