"""For tests of runs that end all ranks with an error."""

from __future__ import annotations

import pytest

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import FitConfig, fit
from trainer.errors import CollectiveError


def messages(size: int, config: FitConfig, kind: type[CollectiveError] = CollectiveError) -> list[str]:
    """What `fit` says on each rank; the communicator is still sound."""

    def rank(comm: Communicator) -> str:
        with pytest.raises(kind) as caught:
            fit(config, comm)
        comm.barrier()
        return str(caught.value)

    return run_threads(size, rank)
