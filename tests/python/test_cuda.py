"""What pycomm says of CUDA where it has none. With a card: tests/gpu."""

from __future__ import annotations

import ctypes
import importlib
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import pycomm
from pycomm import cuda
from pycomm.testing import run_threads


class Tensor:
    """As much of a CUDA tensor as is looked at before it is taken."""

    device = SimpleNamespace(type="cuda", index=0)
    dtype = "torch.float32"
    shape = (3,)

    def data_ptr(self) -> int:
        return 64

    def numel(self) -> int:
        return 3

    def is_contiguous(self) -> bool:
        return True

    def new_empty(self, shape: tuple[int, ...]) -> Tensor:
        return self


def without_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(cuda.importlib, "import_module", missing)


def test_info_tells_whether_cuda_is_built_and_usable() -> None:
    known = pycomm.info()["cuda"]
    assert set(known) == {"built", "usable", "why", "runtime", "driver", "cards"}
    assert known["usable"] == (not known["why"])
    assert known["usable"] == bool(known["cards"])
    assert pycomm.info()["missing"].get("cuda", "") == known["why"]


def test_a_build_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    without_the_module(monkeypatch)
    assert cuda.facts()["built"] is False
    assert "built without CUDA" in pycomm.info()["missing"]["cuda"]


def test_a_module_that_cannot_be_loaded_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("libstdc++.so.6: version not found")

    monkeypatch.setattr(cuda.importlib, "import_module", broken)
    assert cuda.why_not() == "pycomm._cuda cannot be loaded: libstdc++.so.6: version not found"


def test_cuda_tensors_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    without_the_module(monkeypatch)

    def body(comm: pycomm.Communicator) -> None:
        with pytest.raises(pycomm.InvalidArgument, match="x is on device cuda; expected cpu, since this"):
            comm.all_reduce(Tensor())

    run_threads(1, body)


def test_a_module_of_another_build_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    name = b"pycomm.Device of old"
    other = ModuleType("pycomm._cuda")
    other.device = lambda: new(64, name, None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycomm._cuda", other)
    monkeypatch.setattr(cuda, "why_not", lambda: "")

    def body(comm: pycomm.Communicator) -> None:
        with pytest.raises(pycomm.InvalidArgument, match=r"of another build \(pycomm.Device of old\)"):
            comm.all_reduce(Tensor())

    run_threads(1, body)


class Array:
    """As much of an array of CuPy's."""

    def __init__(self, **interface: Any) -> None:
        self.shape, self.nbytes = (3, 2), 24
        self.__cuda_array_interface__ = {
            "shape": self.shape, "typestr": "<f4", "data": (64, False), "version": 3, **interface
        }  # fmt: skip


@pytest.mark.parametrize(
    ("interface", "words"),
    [
        ({"typestr": "<c8"}, "x has element type '<c8'; expected float64"),
        ({"strides": (4, 12)}, "x is not contiguous in C order"),
        ({"data": (64, True)}, "x is read-only"),
        ({"strides": (8, 4)}, "x is on device cuda; expected cpu, since this"),
        ({"strides": None, "stream": 1}, "x is on device cuda; expected cpu, since this"),
    ],
)
def test_arrays_on_cards_are_looked_at_before_they_are_taken(
    interface: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_the_module(monkeypatch)

    def body(comm: pycomm.Communicator) -> None:
        with pytest.raises(pycomm.InvalidArgument, match=words):
            comm.all_reduce(Array(**interface))

    run_threads(1, body)


@pytest.mark.skipif(not cuda.facts()["built"], reason=cuda.why_not())
def test_the_module_loads_without_a_driver() -> None:
    """In a process that sees no card, if this machine has any."""
    program = (
        "from pycomm import cuda; f = cuda.facts(); assert f['built'] and not f['usable'], f; print(f['why'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert importlib.import_module("pycomm._cuda").facts()["runtime"]
