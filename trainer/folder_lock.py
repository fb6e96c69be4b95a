"""One run at a time writes to a folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

from trainer.errors import TrainerError
from trainer.files import writing

WAIT_S = 10.0  # workers that read for a run which was killed notice that within seconds, and hold its lock
PAUSE_S = 0.1


class FolderLock:
    """Nobody's until take(); leaving the `with` block gives it back, as the end of the process does. On a
    file system without locks it locks nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = -1

    def take(self) -> None:
        """Makes the folder if need be. Blocks for up to WAIT_S, then raises TrainerError if another run still
        has it."""
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._folder, os.O_RDONLY)
        until = time.monotonic() + WAIT_S
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if time.monotonic() > until:
                    raise TrainerError(
                        f"{self._folder}: another run is writing there; wait for its end, or give another out"
                    ) from error
            except OSError:
                return
            time.sleep(PAUSE_S)

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1
