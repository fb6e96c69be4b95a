"""torch.distributed's ProcessGroup with the operations of pycomm/torch/operations.py: names, and what else
torch asks of a group."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pycomm.communicator import Communicator
from pycomm.torch.operations import Operations


class PycommProcessGroup(Operations, dist.ProcessGroup):  # type: ignore[misc]  # torch overloads by version
    """A group of ranks, made by torch through pycomm/torch/groups.py."""

    def __init__(self, communicator: Communicator, store: Any, timeout: timedelta) -> None:
        dist.ProcessGroup.__init__(self, communicator.rank, communicator.size)  # type: ignore[call-arg]
        Operations.__init__(self, communicator, timeout)
        self._store = store
        self._name = ""
        self._desc = "undefined"

    def name(self) -> str:
        return "pycomm"

    def getBackendName(self) -> str:  # noqa: N802
        return "pycomm"

    def _get_backend_name(self) -> str:
        return "pycomm"

    def getGroupName(self) -> str:  # noqa: N802
        return self._name

    def setGroupName(self, name: str) -> None:  # noqa: N802
        self._name = name

    def getGroupDesc(self) -> str:  # noqa: N802
        return self._desc

    def setGroupDesc(self, desc: str) -> None:  # noqa: N802
        self._desc = desc

    _set_group_name = setGroupName
    _set_group_desc = setGroupDesc
    # Plain properties: those of torch's class look at a group that C++ made.
    group_name = property(getGroupName, setGroupName)
    group_desc = property(getGroupDesc, setGroupDesc)
    bound_device_id = None

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device("cpu")]

    def _get_backend(self, device: torch.device) -> Any:
        """Itself. Torch 2.15 asks before it sends and receives in batches."""
        return self

    def get_group_store(self) -> Any:
        return self._store
