"""How much memory a piece of work takes at its height, on Linux.

Counted is the proportional set size: pages of this process, those that it shares with others in equal parts.
A thread reads it now and then, a tenth of the time, since reading it holds up what allocates: a short height
may be missed.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from pathlib import Path
from types import TracebackType

SHARE = 0.1  # of the time, for reading
ROLLUP = Path("/proc/self/smaps_rollup")


class Peak:
    """Within it, `nbytes` becomes the height above what there was when it was made."""

    def __init__(self) -> None:
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc: freed memory goes back
        if trim is not None:
            trim(0)
        self.nbytes = 0
        self._before = pss_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        pause_s = 0.0
        while not self._ended.wait(pause_s):
            start = time.monotonic()
            self._look()
            pause_s = (time.monotonic() - start) / SHARE

    def _look(self) -> None:
        self.nbytes = max(self.nbytes, pss_bytes() - self._before)


def pss_bytes() -> int:
    """The proportional set size of this process."""
    for line in ROLLUP.read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{ROLLUP} has no Pss")
