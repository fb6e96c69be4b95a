"""What the command lines of the benchmarks have in common."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pycomm
from bench.errors import BenchError
from trainer.errors import TrainerError
from trainer.registry import Registry

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """Speaks on rank 0 only; wrong arguments end every rank with code 2."""

    def __init__(self, rank: int, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)
        self._rank = rank

    def add_budget(self, *, seconds: float, calls: int) -> None:
        add = self.add_argument
        add("--seconds", type=float, default=seconds, help="of each measurement, about (default %(default)s)")
        add("--iters", type=int, default=calls, help="timed calls at most (default %(default)s)")
        add("--warmup", type=int, default=1, help="untimed calls per turn (default %(default)s)")
        add("--json", type=Path, metavar="FILE", help="write the result there")

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Within it, errors of the caller's doing, seen by all ranks, are reported as wrong arguments."""
        try:
            yield
        except (BenchError, TrainerError) as error:
            self.error(str(error))

    def error(self, message: str) -> NoReturn:
        if self._rank == 0:
            print(f"{self.prog}: {message}", file=sys.stderr, flush=True)
        sys.exit(2)

    def print_help(self, file: Any = None) -> None:
        if self._rank == 0:
            super().print_help(file)


def load(plugin: str | None) -> None:
    """Imports a module of the user's, if one is named."""
    try:
        if plugin:
            importlib.import_module(plugin)
    except ImportError as error:
        raise BenchError(f"--plugin {plugin}: {error}") from error


def names(text: str) -> list[str]:
    """A list by comma, each name once and none empty."""
    found = text.split(",")
    if "" in found or len(set(found)) < len(found):
        raise BenchError(f"expected different names by comma, got {text!r}")
    return found


def split(text: str) -> tuple[str, list[str]]:
    """`name`, `name:option+option` or `name+option` as the name and the options."""
    name, *options = re.split(r"[:+]", text)
    if not name or not all(options):
        raise BenchError(f"expected name or name:option+option, got {text!r}")
    return name, options


def build(registry: Registry[T], text: str, *arguments: Any) -> dict[str, T]:
    """What a list by comma names, each made with its options and the arguments. Unknown names raise first."""
    chosen = {item: split(item) for item in names(text)}
    for name, _ in chosen.values():
        registry.factory(name)
    return {item: registry.build(name, options, *arguments) for item, (name, options) in chosen.items()}


def parallel_arguments(name: str, options: Sequence[str]) -> dict[str, Any]:
    """Options of a step as arguments that the trainer's strategies have in common."""
    codecs = pycomm.info()["codecs"]
    arguments: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        if option in codecs:
            arguments["codec"] = option
        elif key == "overlap" and value in ("on", "off", "auto"):
            arguments["overlap"] = value
        else:
            raise BenchError(
                f"{name}: expected overlap=on|off|auto or a codec ({', '.join(codecs)}), got {option}"
            )
    return arguments
