"""pycomm: collectives for NumPy arrays and torch tensors, over shared memory, MPI and between threads.

>>> import numpy as np
>>> import pycomm
>>> comm = pycomm.init()
>>> comm.all_reduce(np.ones(3, np.float32))
array([1., 1., 1.], dtype=float32)

Importing starts nothing; `init()` does.
"""

from pycomm._core import __version__
from pycomm.buckets import Buckets, Slot
from pycomm.communicator import Communicator
from pycomm.errors import Aborted, InvalidArgument, MismatchError, PycommError, Timeout, TransportError
from pycomm.features import info
from pycomm.mailbox import Mailbox, Message
from pycomm.plans import register_algorithm
from pycomm.session import abort, init, is_initialized, shutdown
from pycomm.trace import trace_span
from pycomm.work import Work

__all__ = [
    "Aborted",
    "Buckets",
    "Communicator",
    "InvalidArgument",
    "Mailbox",
    "Message",
    "MismatchError",
    "PycommError",
    "Slot",
    "Timeout",
    "TransportError",
    "Work",
    "__version__",
    "abort",
    "info",
    "init",
    "is_initialized",
    "register_algorithm",
    "shutdown",
    "trace_span",
]
