"""The exceptions of pycomm. All derive from :class:`PycommError`."""

from __future__ import annotations


class PycommError(RuntimeError):
    """Something went wrong in the engine; the subclasses say what."""


class InvalidArgument(PycommError, ValueError):  # noqa: N818
    """What was passed cannot be served. Nothing has moved and the communicator is as good as before."""


class TransportError(PycommError, OSError):
    """A transport failed, or nothing connects two ranks. The communicator is broken."""


class Timeout(PycommError, TimeoutError):  # noqa: N818
    """An operation passed its deadline; the message names the collective, the peer and the stage. The
    communicator is broken."""


class Aborted(PycommError):  # noqa: N818
    """The operation was given up: interrupted, shut down, or in a forked child."""


class MismatchError(PycommError):
    """Ranks of one communicator made different calls; the message holds both. The communicator is broken."""
