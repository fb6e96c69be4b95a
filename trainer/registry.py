"""Plug-ins by name: data sets, models, strategies.

Each plug-in registers itself from its own file. The files of the registry's package are imported at the first
look-up; a file elsewhere registers by being imported (`--plugin my_module` on the command line). A name with
a colon, `package.module:factory`, is a factory that need not be registered.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from trainer.errors import TrainerError, described

T = TypeVar("T")
Factory = TypeVar("Factory", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Factories of T by name. `kind` is the word for T in messages; `package` holds the plug-ins at hand."""

    def __init__(self, kind: str, package: str, makes: type | None = None) -> None:
        """`makes`: the type that a factory has to return, where that is checked."""
        self.kind = kind
        self._makes = makes
        self._package = package
        self._factories: dict[str, Callable[..., T]] = {}
        self._checks: dict[str, Callable[..., None]] = {}
        self._loaded = False

    def register(
        self, name: str, *, check: Callable[..., None] | None = None
    ) -> Callable[[Factory], Factory]:
        """Decorator for a factory: a function or a class. A name can be taken once. `check` raises
        TrainerError for arguments that the factory would refuse, as far as can be seen without building."""

        def add(factory: Factory) -> Factory:
            if name in self._factories:
                raise TrainerError(f"{self.kind} {name!r} is registered twice")
            self._factories[name] = factory
            if check is not None:
                self._checks[name] = check
            return factory

        return add

    def names(self) -> list[str]:
        self._load()
        return sorted(self._factories)

    def factory(self, name: str) -> Callable[..., T]:
        """Raises TrainerError for an unknown name, with the names that exist."""
        if ":" in name:
            return imported(self.kind, name)
        self._load()
        if name not in self._factories:
            raise TrainerError(
                f"no {self.kind} {name!r}; there is {', '.join(self.names())}, or your own as module:factory"
            )
        return self._factories[name]

    def build(self, name: str, /, *args: Any, **options: Any) -> T:
        """Calls the factory, as call() does. Raises TrainerError where it returns something else than T."""
        made = call(f"{self.kind} {name!r}", self.factory(name), *args, **options)
        if self._makes is not None and not isinstance(made, self._makes):
            expected = f"{self._makes.__module__}.{self._makes.__qualname__}"
            raise TrainerError(
                f"{self.kind} {name!r}: expected it to return a {expected}, got a {type(made).__name__}"
            )
        return made

    def bind(self, name: str, /, *args: Any, **options: Any) -> dict[str, Any]:
        """What the factory would get, defaults included. Raises TrainerError as bind() does."""
        return bind(f"{self.kind} {name!r}", self.factory(name), *args, **options)

    def check(self, name: str, /, *args: Any, **options: Any) -> None:
        """Calls what was registered as the factory's `check`, if anything was."""
        self._load()
        if name in self._checks:
            self._checks[name](*args, **options)

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        self._loaded = True


def imported(kind: str, name: str) -> Callable[..., Any]:
    """The factory that `module:factory` names, found where Python finds modules: with `python -m`, in the
    current folder first. Raises TrainerError that says which half of the name is wrong, or what its import
    raised."""
    path, _, attribute = name.partition(":")
    if not path or not attribute:
        raise TrainerError(f"{kind} {name!r}: expected module:factory, as in mypackage.mymodule:build")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise TrainerError(
                f"{kind} {name!r}: {path} imports {error.name}, which is not installed"
            ) from error
        raise TrainerError(
            f"{kind} {name!r}: no module {error.name!r} in the current folder ({Path.cwd()}) or on PYTHONPATH"
        ) from error
    except Exception as error:
        raise TrainerError(f"{kind} {name!r}: importing {path}: {described(error)}") from error
    factory: Any = module
    for part in attribute.split("."):
        factory = getattr(factory, part, None)
    if not callable(factory):
        there = [each for each, value in vars(module).items() if getattr(value, "__module__", "") == path]
        raise TrainerError(
            f"{kind} {name!r}: {path} has no function {attribute!r}; it has {', '.join(there) or 'none'}"
        )
    found: Callable[..., Any] = factory
    return found


def taken(make: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that it has parameters for."""
    parameters = inspect.signature(make).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(options)
    return {name: value for name, value in options.items() if name in parameters}


def bind(what: str, make: Callable[..., Any], /, *args: Any, **options: Any) -> dict[str, Any]:
    """All arguments of make(*args, **options), by name; it is not called.

    Raises TrainerError for options it does not take, with those it takes.
    """
    signature = inspect.signature(make)
    try:
        bound = signature.bind(*args, **options)
    except TypeError as error:
        takes = list(signature.parameters)[len(args) :]
        raise TrainerError(f"{what}: {error}; it takes {', '.join(takes) or 'no options'}") from None
    bound.apply_defaults()
    return bound.arguments


def call(what: str, make: Callable[..., T], /, *args: Any, **options: Any) -> T:
    """make(*args, **options).

    Raises TrainerError for options that it does not take, with those it takes, and for the TypeError,
    ValueError or OSError of one that cannot work with their values, with what it got and where it failed.
    """
    bind(what, make, *args, **options)
    try:
        return make(*args, **options)
    except (TypeError, ValueError, OSError) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise TrainerError(f"{what} with {given or 'no options'}: {described(error)}") from error


def together(name: str, options: Mapping[str, Any], decided: Mapping[str, Any], by: str) -> dict[str, Any]:
    """The options given as `name`, and those `decided` by something else. TrainerError for one in both."""
    both = options.keys() & decided.keys()
    if both:
        raise TrainerError(f"{name}: {', '.join(sorted(both))} is decided by {by}")
    return {**decided, **options}
