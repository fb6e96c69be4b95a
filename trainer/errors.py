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
    "sklearn": "pip install --no-deps scikit-learn",
    "safetensors": "pip install safetensors",
    "tensorboard": "pip install tensorboard",
    "yaml": "pip install pyyaml",
}  # what installs them


class TrainerError(RuntimeError):
    """Wrong input to the trainer, or a run that cannot go on; the message says expected, got and where."""


class CollectiveError(TrainerError):
    """Every rank raises it at the same place, and the communicator is still sound."""


class StoppedError(CollectiveError):
    """A run cannot go on. `step`: the parameters are those after this step, and as they should be."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class DivergedError(StoppedError):
    """A loss or gradient is no longer a finite number."""


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
