"""What goes wrong in a benchmark by the caller's doing."""

from __future__ import annotations


class BenchError(RuntimeError):
    """The benchmark cannot run as asked; the message says expected, got and where."""
