"""A process that is killed between two of its calls to the file system, played within one process.

After so many calls the next one is not done, or half done where it writes, and neither is any later one:
nothing that the product does to tidy up has an effect, as after SIGKILL. Faults by wrapping: the product
knows nothing of it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from trainer import weights

CALLS = ("fsync", "rename", "replace", "link", "unlink", "mkdir", "rmdir")


class Killed(BaseException):
    """No handler of errors catches it."""


class DyingDisk:
    """`alive_for`: how many calls are done. `seen`: what was done, a name and the paths."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, alive_for: float) -> None:
        self._left = alive_for
        self._lock = threading.RLock()
        self.seen: list[tuple[str, tuple[str, ...]]] = []
        for name in CALLS:
            monkeypatch.setattr(os, name, self._whole(name, getattr(os, name)))
        monkeypatch.setattr(weights, "save_file", self._halved(safetensors.torch.save_file))
        monkeypatch.setattr(Path, "write_text", self._text(Path.write_text))

    def settled(self) -> None:
        """Waits for the threads that still would write; until then the calls must stay wrapped."""
        for thread in threading.enumerate():
            if thread.name.startswith("checkpoints of"):
                thread.join(60)

    def _dies(self, name: str, *paths: object) -> bool:
        self._left -= 1
        if self._left >= 0:
            self.seen.append((name, tuple(map(_path, paths))))
        return self._left < 0

    def _whole(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with self._lock:
                if self._dies(name, *args[: 2 if name in ("rename", "replace", "link") else 1]):
                    raise Killed(name)
                return real(*args, **options)

        return call

    def _halved(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def save_file(tensors: Any, path: Path, header: Any) -> None:
            with self._lock:
                if not self._dies("write", path):
                    real(tensors, path, header)
                    return
                if self._left == -1:
                    real(tensors, path, header)
                    os.truncate(path, path.stat().st_size // 2)
                raise Killed("write")

        return save_file

    def _text(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def write_text(path: Path, text: str) -> int:
            with self._lock:
                if not self._dies("write", path):
                    return int(real(path, text))
                if self._left == -1:
                    real(path, text[: len(text) // 2])
                raise Killed("write")

        return write_text


def _path(of: object) -> str:
    return os.readlink(f"/proc/self/fd/{of}") if isinstance(of, int) else str(of)
