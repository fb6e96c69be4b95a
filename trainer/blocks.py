"""Which parameters of a model are gathered together (ZeRO-3): blocks, and what is left over, the root.

A block is a module that the model calls as a whole, such as a transformer's layer. What is used in several
blocks, or outside of all (embeddings, heads, tied weights), belongs to the root, which is there from the
first use in a step to the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from trainer.errors import TrainerError

# Modules, names of their classes, or a question about a module.
Choice = Sequence[nn.Module | str] | Callable[[nn.Module], bool] | None

CONTAINERS = (nn.ModuleList, nn.ModuleDict)  # which are never called themselves


@dataclass(frozen=True)
class Members:
    """A block's module and its parameters. `name`: the module's in the model, "" of the root."""

    name: str
    module: nn.Module
    parameters: list[nn.Parameter]


def partition(model: nn.Module, choice: Choice = None) -> list[Members]:
    """The root, which may have no parameters, then the blocks in order of registration; none is empty.

    Without a choice these are the children of every Sequential, ModuleList and ModuleDict that lies in no
    block itself. A function, or names of classes, choose the outermost modules for which they hold.
    Raises TrainerError for a choice of modules that are not the model's, or lie within one another, and for
    one that chooses nothing.
    """
    modules = dict(_chosen(model, choice))
    # Every name of every parameter, so that what has names in several blocks is seen.
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = next((block for block in modules if name.startswith(f"{block}.")), "")
        owners.setdefault(id(parameter), set()).add(owner)
    members: dict[str, list[nn.Parameter]] = {"": [], **{name: [] for name in modules}}
    for parameter in model.parameters():
        blocks = owners[id(parameter)]
        members[next(iter(blocks)) if len(blocks) == 1 else ""].append(parameter)
    return [
        Members(name, modules.get(name, model), parameters)
        for name, parameters in members.items()
        if parameters or not name
    ]


def gathered_at_once(nbytes: Sequence[int]) -> int:
    """Of blocks of so many bytes, the root first, what is there at the height of a step: the root, the block
    that computes and the next."""
    return sum(nbytes[:1]) + sum(sorted(nbytes[1:])[-2:])


def _chosen(model: nn.Module, choice: Choice) -> Iterator[tuple[str, nn.Module]]:
    if choice is None:
        return _by_default(model, "")
    if callable(choice):
        return _found(_outermost(model, "", choice), "the function holds for no module")
    classes = {item for item in choice if isinstance(item, str)}
    if classes:
        unknown = classes - {type(module).__name__ for module in model.modules()}
        if unknown or len(classes) < len(choice):
            raise TrainerError(f"blocks: expected classes of the model's modules, got {list(choice)}")
        return _found(_outermost(model, "", lambda module: type(module).__name__ in classes), "")
    return _found(_listed(model, choice), "the list is empty")


def _found(blocks: Iterator[tuple[str, nn.Module]], otherwise: str) -> Iterator[tuple[str, nn.Module]]:
    found = list(blocks)
    if not found:
        raise TrainerError(f"blocks: expected one module or more, {otherwise}")
    return iter(found)


def _by_default(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    listing = isinstance(module, (nn.Sequential, *CONTAINERS))
    for name, child in module.named_children():
        if listing and not isinstance(child, CONTAINERS):
            yield prefix + name, child
        else:
            yield from _by_default(child, f"{prefix}{name}.")


def _outermost(
    module: nn.Module, prefix: str, wanted: Callable[[nn.Module], bool]
) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if wanted(child):
            yield prefix + name, child
        else:
            yield from _outermost(child, f"{prefix}{name}.", wanted)


def _listed(model: nn.Module, choice: Sequence[nn.Module | str]) -> Iterator[tuple[str, nn.Module]]:
    names = {id(module): name for name, module in model.named_modules()}
    wanted = {id(module) for module in choice}
    for module in choice:
        if not isinstance(module, nn.Module) or not names.get(id(module)):
            raise TrainerError(f"blocks: expected modules within the model, got {type(module).__name__}")
        inner = [other for other in module.modules() if other is not module and id(other) in wanted]
        if inner:
            raise TrainerError(
                f"blocks: {names[id(inner[0])]} lies within {names[id(module)]}: choose one of them"
            )
    return _outermost(model, "", lambda module: id(module) in wanted)
