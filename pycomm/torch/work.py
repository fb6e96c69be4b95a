"""What a collective of the process group returns, and who completes its future.

A work is *finished* once, by whoever comes first after the engine is done with it: the caller in wait() or
is_completed(), or, where a future was asked for, the completion thread. Finishing copies results from where
the engine put them to where the user wants them, if those differ.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed.distributed_c10d as c10d
from torch import Tensor

_SLICE_S = 1e-3  # for how long the completion thread waits for one work before it looks at the others
_PASS_S = 1e-6  # enough for the engine to go over what is in flight once
_END_S = 1.0  # for a callback that runs when the interpreter ends


Finish = Callable[[], None]


class Pending(Protocol):
    """What the engine does, or has done: a pycomm.Work, or several, or a receive."""

    def wait(self, timeout: float | None = None) -> Any: ...
    def done(self) -> bool: ...


class PycommWork(c10d.Work):
    """An operation in flight. Threads: any."""

    def __init__(
        self, pending: Sequence[Pending], result: list[Tensor], finish: Finish | None = None
    ) -> None:
        super().__init__()
        self._pending = pending
        self._result = result
        self._finish = finish
        self._lock = threading.Lock()
        self._finished = False
        self._error: BaseException | None = None
        self._future: torch.futures.Future[list[Tensor]] | None = None

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Block until the result is there. Raises what made the operation fail, or pycomm.Timeout when
        `timeout` is over first (the operation then goes on); zero means none."""
        seconds = timeout.total_seconds() if timeout else None
        try:
            for pending in self._pending:
                pending.wait(seconds)
        except Exception:  # but not KeyboardInterrupt
            if not self.is_completed():
                raise
        self._end()
        if self._error is not None:
            raise self._error
        return True

    def is_completed(self) -> bool:
        """Whether the operation has ended, well or not. Does not block, but moves what can be moved: without
        a progress thread nobody else may."""
        if not self._finished and not self.has_ended():
            self._advance(_PASS_S)
        if not self._finished and self.has_ended():
            self._end()
        return self._finished

    def has_ended(self) -> bool:
        """The same, moving and finishing nothing."""
        return all(pending.done() for pending in self._pending)

    def is_success(self) -> bool:
        return self.is_completed() and self._error is None

    def exception(self) -> BaseException | None:
        return self._error if self.is_completed() else None

    def result(self) -> list[Tensor]:
        return self._result

    def synchronize(self) -> None:
        self.wait()

    def get_future(self) -> torch.futures.Future[list[Tensor]]:
        """A future of the list of result tensors; it completes without wait() being called."""
        with self._lock:
            if self._future is None:
                self._future = torch.futures.Future()
                if self._finished:
                    self._complete(self._future)
                else:
                    COMPLETIONS.watch(self)
            return self._future

    def await_slice(self) -> None:
        """Let the engine work on this for a moment; completion thread only."""
        self._advance(_SLICE_S)

    def _advance(self, seconds: float) -> None:
        try:
            for pending in self._pending:
                pending.wait(seconds)
        except Exception:  # told when the work is finished
            pass

    def _end(self) -> None:
        with self._lock:
            if self._finished:
                return
            try:
                for pending in self._pending:
                    pending.wait()  # done: raises its error, if any
                if self._finish is not None:
                    self._finish()
            except BaseException as error:
                self._error = error
            self._finish = None
            self._finished = True
            future = self._future
        if future is not None:
            self._complete(future)

    def _complete(self, future: torch.futures.Future[list[Tensor]]) -> None:
        if self._error is None:
            future.set_result(self._result)
        else:
            future.set_exception(self._error)  # type: ignore[arg-type]

    def _source_rank(self) -> int:
        """From which rank a message came; -1 where none did."""
        return next((pending.source for pending in self._pending if hasattr(pending, "source")), -1)


def in_turn(finishes: Sequence[Finish]) -> Finish | None:
    """One function that calls all of these; None for none."""
    if not finishes:
        return None

    def finish() -> None:
        for each in finishes:
            each()

    return finish


def all_of(works: Sequence[PycommWork]) -> PycommWork:
    """One work that is done when all of these are."""
    pending = [p for work in works for p in work._pending]
    result = [tensor for work in works for tensor in work._result]

    def finish() -> None:
        for work in works:
            work.wait()

    return PycommWork(pending, result, finish)


class Completions:
    """Completes the futures that nobody waits for. One thread watches at a time; before it completes what has
    ended it hands the watch to another, for a callback of a future may wait for a future in its turn. The
    threads end before the interpreter does: one that is still in the engine then would be torn out of it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._works: list[PycommWork] = []
        self._threads: list[threading.Thread] = []
        self._idle = 0  # of the threads
        self._watched = False
        self._ending = False

    def watch(self, work: PycommWork) -> None:
        """Complete the work's future when it is done. Does not block."""
        with self._changed:
            self._works.append(work)
            if not self._threads:
                atexit.register(self._end)
                self._start()
            self._changed.notify()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="pycomm.torch futures", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self._ending and (self._watched or not self._works):
                    self._changed.wait()
                self._idle -= 1
                if self._ending:
                    return
                self._watched = True
                works = list(self._works)
            works[0].await_slice()
            ended = {id(work): work for work in works if work.has_ended()}
            with self._changed:
                self._works = [work for work in self._works if id(work) not in ended]
                self._watched = False
                if ended and not self._idle:
                    self._start()
                self._changed.notify()
            for work in ended.values():
                work.is_completed()

    def _end(self) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_END_S)


COMPLETIONS = Completions()
