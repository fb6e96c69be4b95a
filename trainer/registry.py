"""Plug-ins by name: data sets, models, strategies.

Each plug-in registers itself from its own file. The files of the registry's package are imported at the first
look-up; a file elsewhere registers by being imported (`--plugin my_module` on the command line).
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from trainer.errors import TrainerError

T = TypeVar("T")
Factory = TypeVar("Factory", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Factories of T by name. `kind` is the word for T in messages; `package` holds the plug-ins at hand."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._factories: dict[str, Callable[..., T]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[Factory], Factory]:
        """Decorator for a factory: a function or a class. A name can be taken once."""

        def add(factory: Factory) -> Factory:
            if name in self._factories:
                raise TrainerError(f"{self.kind} {name!r} is registered twice")
            self._factories[name] = factory
            return factory

        return add

    def names(self) -> list[str]:
        self._load()
        return sorted(self._factories)

    def factory(self, name: str) -> Callable[..., T]:
        """Raises TrainerError for an unknown name, with the names that exist."""
        self._load()
        if name not in self._factories:
            raise TrainerError(f"no {self.kind} {name!r}; there is {', '.join(self.names())}")
        return self._factories[name]

    def build(self, name: str, *args: Any, **options: Any) -> T:
        """Calls the factory. Raises TrainerError for options it does not take, with those it takes."""
        factory = self.factory(name)
        signature = inspect.signature(factory)
        try:
            signature.bind(*args, **options)
        except TypeError as error:
            takes = list(signature.parameters)[len(args) :]
            raise TrainerError(
                f"{self.kind} {name!r}: {error}; it takes {', '.join(takes) or 'no options'}"
            ) from None
        return factory(*args, **options)

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        self._loaded = True
