"""What a mailbox message may hold, as a head and pieces of memory, and back.

The head is JSON. Strings, numbers, true, false, null and lists stand for themselves; everything else is an
object with one key that says what it is: {"tuple": [...]}, {"dict": {...}}, {"int": "-0x..."} (beyond 64
bits), {"bytes": piece}, {"numpy": [piece, dtype, shape]}, {"torch": [piece, dtype, shape]}. Pieces are
numbered in the order in which the head names them. Nothing that arrives is executed, and nothing in it is
believed unchecked.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pycomm.errors import InvalidArgument, PycommError

# By what dtype.str says; both byte orders. bfloat16 is not NumPy's own: ml_dtypes.
_NUMPY: dict[str, np.dtype[Any]] = {
    dtype.str: dtype
    for code in "?bBhHiIlLqQefdgFDG"
    for dtype in (np.dtype(code), np.dtype(code).newbyteorder())
}
_BFLOAT16 = "bfloat16"
_TORCH = frozenset(
    f"{kind}{bits}"
    for kind, sizes in {"float": (16, 32, 64), "int": (8, 16, 32, 64), "uint": (8, 16, 32, 64)}.items()
    for bits in sizes
) | {"bool", "bfloat16", "complex64", "complex128"}
_EXPECTED = (
    "expected dict (str keys), list, tuple, str, int, float, bool, None, bytes, "
    "a NumPy array or a torch tensor"
)


def encode(content: Any) -> tuple[bytes, list[Any]]:
    """The head and the pieces: flat arrays of uint8 over the memory of the arrays in `content`, and its
    bytes.

    Arrays that are not contiguous are copied. Raises InvalidArgument that names the place in `content` of
    what cannot be sent.
    """
    pieces: list[Any] = []
    try:
        node = _encode(content, "content", pieces)
        return json.dumps(node, separators=(",", ":")).encode(), pieces
    except RecursionError:
        raise InvalidArgument("content is nested too deeply, or contains itself") from None


def decode(head: bytes, pieces: Sequence[np.ndarray[Any, Any]]) -> Any:
    """The content; its arrays are views of `pieces` (arrays of uint8). Raises PycommError when the head is
    not what `encode` makes."""
    try:
        reader = _Reader(pieces)
        content = reader.read(json.loads(head.decode()))
    except PycommError:
        raise
    except RecursionError:
        raise PycommError("a message that is nested too deeply") from None
    except (ValueError, TypeError) as error:
        raise PycommError(f"a torn message: {error}") from None
    if reader.used != len(pieces):
        raise PycommError(f"a torn message: its head names {reader.used} of {len(pieces)} pieces")
    return content


# ---- to the head


def _encode(x: Any, path: str, pieces: list[Any]) -> Any:
    kind = type(x)
    if x is None or kind in (bool, str, float):
        return x
    if kind is int:
        return x if -(2**63) <= x < 2**63 else {"int": hex(x)}
    if kind is list:
        return [_encode(item, f"{path}[{i}]", pieces) for i, item in enumerate(x)]
    if kind is tuple:
        return {"tuple": [_encode(item, f"{path}[{i}]", pieces) for i, item in enumerate(x)]}
    if kind is dict:
        return {"dict": {_key(k, path): _encode(item, f"{path}[{k!r}]", pieces) for k, item in x.items()}}
    if kind is bytes:
        return {"bytes": _add(pieces, x)}
    if kind is np.ndarray:
        return {"numpy": [_add(pieces, _numpy_memory(x, path)), _numpy_name(x.dtype), list(x.shape)]}
    if kind.__module__ == "torch" and kind.__name__ == "Tensor":
        memory = _torch_memory(x, path)
        return {"torch": [_add(pieces, memory), str(x.dtype).removeprefix("torch."), list(x.shape)]}
    if isinstance(x, (np.ndarray, np.generic, dict, list, tuple, str, int, float, bytes)):
        raise InvalidArgument(f"{path} is a {_name(kind)}, which would not arrive as one; {_EXPECTED}")
    if kind.__module__.split(".")[0] == "torch":
        raise InvalidArgument(f"{path} is a {_name(kind)}; pass .detach(), a plain tensor; {_EXPECTED}")
    raise InvalidArgument(f"{path} is a {_name(kind)}; {_EXPECTED}")


def _name(kind: type) -> str:
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _key(key: Any, path: str) -> str:
    if type(key) is not str:
        raise InvalidArgument(f"{path} has the key {key!r}, a {_name(type(key))}; expected keys of type str")
    return key


def _add(pieces: list[Any], memory: Any) -> int:
    pieces.append(memory)
    return len(pieces) - 1


def _numpy_name(dtype: np.dtype[Any]) -> str:
    return _BFLOAT16 if dtype.name == _BFLOAT16 else dtype.str


def _numpy_memory(x: np.ndarray[Any, Any], path: str) -> Any:
    if _numpy_name(x.dtype) not in _NUMPY and x.dtype.name != _BFLOAT16:
        raise InvalidArgument(
            f"{path} is an array of dtype {x.dtype}; expected numbers of fixed size, or bool"
        )
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8)


def _torch_memory(x: Any, path: str) -> Any:
    torch = sys.modules["torch"]
    if x.device.type != "cpu" or x.layout is not torch.strided:
        raise InvalidArgument(f"{path} is a {x.layout} tensor on {x.device}; expected a dense one on cpu")
    if x.requires_grad:
        raise InvalidArgument(
            f"{path} is a tensor that requires grad, which would not arrive so; pass .detach()"
        )
    if str(x.dtype).removeprefix("torch.") not in _TORCH:
        raise InvalidArgument(
            f"{path} is a tensor of dtype {x.dtype}; expected one of {', '.join(sorted(_TORCH))}"
        )
    return x.resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8).numpy()


# ---- from the head


class _Reader:
    def __init__(self, pieces: Sequence[np.ndarray[Any, Any]]) -> None:
        self.pieces = pieces
        self.used = 0

    def read(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.read(item) for item in node]
        if not isinstance(node, dict):
            return node
        if len(node) != 1:
            raise ValueError(f"an object with {len(node)} keys")
        ((kind, value),) = node.items()
        if kind not in _READERS:
            raise ValueError(f"an unknown kind {kind[:40]!r}")
        return _READERS[kind](self, value)

    def tuple(self, value: Any) -> Any:
        return tuple(self.read(_typed(value, list)))

    def dict(self, value: Any) -> Any:
        return {key: self.read(item) for key, item in _typed(value, dict).items()}

    def int(self, value: Any) -> Any:
        return int(_typed(value, str), 16)

    def bytes(self, value: Any) -> Any:
        return self.piece(value).tobytes()

    def numpy(self, value: Any) -> Any:
        piece, name, shape = _typed(value, list)
        if name == _BFLOAT16:
            dtype = _bfloat16()
        elif isinstance(name, str) and name in _NUMPY:
            dtype = _NUMPY[name]
        else:
            raise ValueError(f"an array of unknown dtype {str(name)[:40]!r}")
        return self.sized(piece, dtype.itemsize, shape).view(dtype).reshape(shape)

    def torch(self, value: Any) -> Any:
        piece, name, shape = _typed(value, list)
        if not (isinstance(name, str) and name in _TORCH):
            raise ValueError(f"a tensor of unknown dtype {str(name)[:40]!r}")
        torch = _torch()
        dtype = getattr(torch, name)
        memory = self.sized(piece, dtype.itemsize, shape)
        return torch.from_numpy(memory).view(dtype).view(shape)

    def sized(self, piece: Any, item_bytes: Any, shape: Any) -> Any:
        memory = self.piece(piece)
        whole = all(type(n) is int and 0 <= n < 2**62 for n in _typed(shape, list))
        if not whole or len(shape) > 64 or math.prod(shape) * item_bytes != memory.size:
            raise ValueError(f"an array of shape {str(shape)[:80]} in {memory.size} bytes")
        return memory

    def piece(self, index: Any) -> Any:
        if type(index) is not int or index != self.used or index >= len(self.pieces):
            raise ValueError(f"piece {str(index)[:40]} where {self.used} of {len(self.pieces)} comes next")
        self.used += 1
        return self.pieces[index]


_READERS: dict[str, Callable[[_Reader, Any], Any]] = {
    "tuple": _Reader.tuple,
    "dict": _Reader.dict,
    "int": _Reader.int,
    "bytes": _Reader.bytes,
    "numpy": _Reader.numpy,
    "torch": _Reader.torch,
}


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _bfloat16() -> np.dtype[Any]:
    try:
        ml_dtypes = importlib.import_module("ml_dtypes")
    except ImportError:
        raise PycommError(
            "a message holds a NumPy array of bfloat16, and ml_dtypes is not installed here"
        ) from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise PycommError("a message holds a torch tensor, and torch is not installed here") from None
    return torch
