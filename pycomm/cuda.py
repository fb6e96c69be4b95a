"""CUDA: what of it this build and this machine have.

It is optional at build time (the module `_cuda`) and at run time (a driver and a card).
"""

from __future__ import annotations

import importlib
from typing import Any


def facts() -> dict[str, Any]:
    """`built`, `usable`, `why` not (empty: usable), the versions `runtime` and `driver` (empty: none), and
    `cards`, each with name, memory_bytes and capability. Starts no context on any card; does not block."""
    try:
        module = importlib.import_module("pycomm._cuda")
    except ImportError as error:
        why = "this pycomm was built without CUDA: no nvcc was found, or PYCOMM_CUDA=OFF"
        if not (isinstance(error, ModuleNotFoundError) and error.name == "pycomm._cuda"):
            why = f"pycomm._cuda cannot be loaded: {error}"
        return {"built": False, "usable": False, "why": why, "runtime": "", "driver": "", "cards": []}
    found = module.facts()
    return {"built": True, "usable": not found["why"], **found}


def why_not() -> str:
    """Why CUDA tensors cannot be taken here; empty where they can."""
    return str(facts()["why"])
