"""Messages of unknown sender and size, beside the collectives and over the same transports.

A mailbox is a number, its tag, on which every rank of a communicator can be written to. Parameter servers,
task queues and pipelines are Python programs on it. Messages from one rank to one mailbox arrive in the order
sent; different mailboxes, and collectives, do not wait for each other.

Of one sender, a mailbox holds at most 64 messages and 16 MiB that have not been received (a larger message
goes alone); then the sender waits. Without a progress thread a rank moves messages, of others too, only while
it is in some call of pycomm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pycomm import _core
from pycomm.content import decode, encode
from pycomm.errors import InvalidArgument, PycommError, Timeout
from pycomm.request import checked_timeout
from pycomm.work import Work, wait_for

_ANYONE = -1


@dataclass(frozen=True)
class Message:
    """What came, and from which rank. Its arrays are writable views of memory that it owns."""

    source: int
    content: Any


class Mailbox:
    """Messages to and from the ranks of a communicator. Made by `Communicator.mailbox()`; usable from any
    thread.

    Errors of every call: `InvalidArgument` before anything moves; what broke the communicator, where
    something has; `Aborted` where the other rank has left (ended, or called shutdown()).
    """

    def __init__(self, communicator: _core.Communicator, tag: int, timeout: float) -> None:
        self._communicator = communicator
        self._timeout = timeout
        self._core = _core.Mailbox(communicator, tag)

    @property
    def tag(self) -> int:
        return self._core.tag

    def __repr__(self) -> str:
        return f"<pycomm.Mailbox {self.tag} of rank {self._communicator.rank} of {self._communicator.size}>"

    def send(self, peer: int, content: Any, timeout: float | None = None) -> None:
        """Send `content` to rank `peer` (this one too). Blocks until its arrays may be rewritten, which may
        be before it is received.

        content: any nesting of dict (with str keys), list, tuple, str, int, float, bool, None, bytes, NumPy
        arrays and dense torch tensors on cpu, of bool and all numbers of fixed size; each arrives equal in
        type, dtype, shape and value. Nothing is pickled; contiguous arrays are sent from where they lie.
        timeout: seconds; None: `PYCOMM_TIMEOUT_S`. Raises Timeout that says what `peer` has not done. That
        breaks the communicator only if a part of the message has gone.

        >>> comm.mailbox(7).send(1, {"step": 3, "gradient": np.ones(5)})
        """
        wait_for(self._communicator, self._submit(peer, content, timeout), None)

    def send_async(self, peer: int, content: Any, timeout: float | None = None) -> Work[None]:
        """Start `send`; does not block. The arrays belong to it until it is done."""
        work = self._submit(peer, content, timeout)
        self._core.poke()
        return Work(self._communicator, work, None)

    def recv(self, source: int | None = None, timeout: float | None = None) -> Message:
        """Return the next message from rank `source`, or the earliest from anyone. Blocks.

        timeout: seconds; None: `PYCOMM_TIMEOUT_S`. When they are over, Timeout is raised and nothing is
        broken. Raises Aborted when the rank, or every other rank, has left and nothing more is here or, of
        this rank's own, on its way: to wait for another thread of this rank then, name it as the source. A
        message that cannot be read raises PycommError, and is gone.
        """
        seconds = checked_timeout(timeout) or self._timeout
        mail = self._core.recv(_source(source), seconds)
        if mail is None:
            whom = "anyone" if source is None else f"rank {source}"
            raise Timeout(
                f"rank {self._communicator.rank}: no message from {whom} in mailbox {self.tag} "
                f"after {seconds} s"
            )
        return _message(mail, self.tag)

    def poll(self, source: int | None = None) -> Message | None:
        """Return the message that `recv` would, or None where it would wait; raise what it would raise. Does
        not block, but moves what can be moved."""
        self._core.poke()
        mail = self._core.take(_source(source))
        return None if mail is None else _message(mail, self.tag)

    def _submit(self, peer: int, content: Any, timeout: float | None) -> _core.Work:
        seconds = checked_timeout(timeout)
        head, pieces = encode(content)
        return self._core.submit(_whole(peer, "peer"), head, pieces, seconds)


def mailbox_of(
    mailboxes: dict[int, Mailbox], communicator: _core.Communicator, tag: int, timeout: float
) -> Mailbox:
    """The one of that tag, made when it is first asked for."""
    tag = _whole(tag, "tag")
    if tag not in mailboxes:
        # Of two threads that come here at once both get the first one's.
        return mailboxes.setdefault(tag, Mailbox(communicator, tag, timeout))
    return mailboxes[tag]


def _message(mail: Any, tag: int) -> Message:  # a _core.Mail, which has the buffer protocol
    memory = np.frombuffer(mail, np.uint8)
    pieces = [memory[offset : offset + size] for offset, size in mail.pieces]
    try:
        return Message(mail.source, decode(mail.head, pieces))
    except PycommError as error:
        raise PycommError(f"from rank {mail.source} in mailbox {tag}: {error}") from None


def _source(source: int | None) -> int:
    if source is None:
        return _ANYONE
    if _whole(source, "source") < 0:
        raise InvalidArgument(f"source is {source}; expected a rank, or None for anyone")
    return int(source)


def _whole(number: Any, name: str) -> int:
    if (
        isinstance(number, bool)
        or not isinstance(number, (int, np.integer))
        or not -(2**31) <= number < 2**31
    ):
        raise InvalidArgument(f"{name} is {number!r}; expected a whole number")
    return int(number)
