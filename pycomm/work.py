"""What an asynchronous operation returns."""

from __future__ import annotations

from typing import Generic, TypeVar

from pycomm import _core
from pycomm.errors import InvalidArgument, Timeout

T = TypeVar("T")

_FOREVER_S = 1e9  # the operation's own deadline ends it


def wait_for(communicator: _core.Communicator, work: _core.Work, timeout: float | None) -> None:
    """Block until the work is done; raise what made it fail, or `Timeout` when the time is over first."""
    if timeout is not None and not timeout >= 0:
        raise InvalidArgument(f"timeout is {timeout}; expected seconds, 0 or more, or None")
    if not communicator.wait(work, _FOREVER_S if timeout is None else timeout):
        raise Timeout(f"not done within {timeout} s; the operation goes on")


class Work(Generic[T]):
    """An operation in flight. Dropping it is fine: the operation goes on, and holds its tensors until it is
    done."""

    __slots__ = ("_communicator", "_result", "_work")

    def __init__(self, communicator: _core.Communicator, work: _core.Work, result: T) -> None:
        self._communicator = communicator
        self._work = work
        self._result = result

    def wait(self, timeout: float | None = None) -> T:
        """Block until the operation is done and return its result.

        timeout: seconds; when they are over first, `Timeout` is raised and the operation goes on. Without it,
        the operation's own deadline holds. Raises whatever made the operation fail.
        """
        wait_for(self._communicator, self._work, timeout)
        return self._result

    def done(self) -> bool:
        """Whether the operation has ended, well or not. Does not block, and moves nothing."""
        return self._work.done()

    def error(self) -> Exception | None:
        """What made the operation fail; None while it runs and after success."""
        error: Exception | None = self._work.error()
        return error

    @property
    def bytes_sent(self) -> int:
        """Payload bytes that this rank sent to others (0 until done)."""
        return self._work.bytes_sent

    @property
    def submitted_s(self) -> float:
        """When the operation was asked for, in seconds on the clock of `time.monotonic()`."""
        return self._work.submitted_s

    @property
    def started_s(self) -> float:
        """When its first step could run (0.0 until done), on the same clock."""
        return self._work.started_s

    @property
    def finished_s(self) -> float:
        """When it ended (0.0 until then), on the same clock."""
        return self._work.finished_s
