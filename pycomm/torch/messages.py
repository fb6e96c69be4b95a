"""Point to point: tagged messages from a named or any rank, over the mailboxes of the group's communicator.

A tag of torch's is the mailbox of that number. Receives that are posted for one tag get messages in the order
in which they were posted, as MPI does it: a message goes to the first of them that names its sender, or
nobody.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from torch import Tensor

from pycomm.communicator import Communicator
from pycomm.errors import InvalidArgument, PycommError, Timeout
from pycomm.mailbox import Mailbox, Message
from pycomm.torch.memory import moved, put, room_for

_SLICE_S = 1e-3  # for how long one waiting thread keeps the others from looking


class Receive:
    """A posted receive; waits like a pycomm.Work."""

    def __init__(self, inbox: Inbox, source: int | None, tensor: Tensor, timeout_s: float) -> None:
        self._inbox = inbox
        self._deadline_s = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self.source = source  # whom it waits for; once it is done, who sent
        self.tensor = tensor
        self.ended = False
        self.error: BaseException | None = None

    def done(self) -> bool:
        if not self.ended:
            self._inbox.advance(self, 0.0)
            self._give_up_late()
        return self.ended

    def wait(self, timeout: float | None = None) -> None:
        until_s = None if timeout is None else time.monotonic() + timeout
        while not self.ended:
            self._inbox.advance(self, _SLICE_S)
            self._give_up_late()
            if not self.ended and until_s is not None and time.monotonic() > until_s:
                raise Timeout(f"not done within {timeout} s; the operation goes on")
        if self.error is not None:
            raise self.error

    def take(self, message: Message) -> None:
        """Fill the tensor; a message that does not fit is an error of this receive."""
        self.source = message.source
        content, target = message.content, moved(room_for(self.tensor))
        if content.dtype != target.dtype or content.numel() != target.numel():
            self.error = InvalidArgument(
                f"recv: rank {message.source} sent {content.numel()} elements of {content.dtype}; expected "
                f"{target.numel()} of {target.dtype}"
            )
        else:
            put(content.view(self.tensor.dtype), self.tensor)
        self.ended = True

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.ended = True

    def _give_up_late(self) -> None:
        if not self.ended and time.monotonic() > self._deadline_s:
            error = Timeout(f"recv: no message from {self._whom()} within {self._timeout_s} s")
            self._inbox.give_up(self, error)

    def _whom(self) -> str:
        return "anyone" if self.source is None else f"rank {self.source}"


class Inbox:
    """The receives posted for one tag. Threads: any."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._lock = threading.Lock()
        self._posted: deque[Receive] = deque()

    def post(self, receive: Receive) -> None:
        with self._lock:
            self._posted.append(receive)

    def advance(self, receive: Receive, seconds: float) -> None:
        """Hand out what has come; where nothing is for `receive`, wait for its source that long."""
        with self._lock:
            while not receive.ended:
                try:
                    message = self._next(receive.source, seconds)
                except Timeout:
                    return
                except PycommError as error:
                    receive.fail(error)
                    self._posted.remove(receive)
                    return
                if message is None:
                    return
                self._deliver(message)

    def give_up(self, receive: Receive, error: PycommError) -> None:
        with self._lock:
            if not receive.ended:
                self._posted.remove(receive)
                receive.fail(error)

    def _next(self, source: int | None, seconds: float) -> Message | None:
        message = self._mailbox.poll(source)
        if message is None and seconds > 0:
            return self._mailbox.recv(source, timeout=seconds)
        return message

    def _deliver(self, message: Message) -> None:
        # The receive that asked for this source, or for anyone, is posted: there is one.
        first = next(r for r in self._posted if r.source in (None, message.source))
        self._posted.remove(first)
        try:
            first.take(message)
        except BaseException as error:
            first.fail(error)


class Messages:
    """Sends and receives of a group."""

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator
        self._inboxes: dict[int, Inbox] = {}
        self._lock = threading.Lock()

    def send(self, tensor: Tensor, peer: int, tag: int, timeout_s: float) -> Any:
        return self._communicator.mailbox(tag).send_async(peer, moved(tensor), timeout=timeout_s)

    def recv(self, tensor: Tensor, source: int | None, tag: int, timeout_s: float) -> Receive:
        with self._lock:
            inbox = self._inboxes.get(tag)
            if inbox is None:
                inbox = self._inboxes[tag] = Inbox(self._communicator.mailbox(tag))
        receive = Receive(inbox, source, tensor, timeout_s)
        inbox.post(receive)
        return receive
