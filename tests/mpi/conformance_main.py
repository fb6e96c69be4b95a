"""All conformance cases between processes over one transport, in one job, from the root of the project:

    python -m pycomm.launch -n N tests/mpi/conformance_main.py TRANSPORT [DEVICE]

or, where PYCOMM_NODES puts the ranks on several nodes, of what follows nodes over two: "shm,mpi" are within
and between nodes. With a torch device the arrays lie there.

Prints a line for each pass, and what went wrong; the exit status is 1 if anything did.
"""

from __future__ import annotations

import os
import sys
from functools import partial

import pycomm
from tests.conformance.cases import Scope, cases, coverage_faults
from tests.conformance.on_device import DeviceMemory, placeable
from tests.conformance.oracle import Oracle
from tests.conformance.runner import Report, judge, run_cases
from tests.conformance.scopes import environment, followers, registry, scopes


def gathered(report: Report) -> list[Report] | None:
    from mpi4py import MPI  # after pycomm.init() has started it

    if not MPI.Is_initialized():
        return [report]  # a rank that no launcher started
    return MPI.COMM_WORLD.gather(report)


def run_pass(transport: str, scope: Scope, device: str | None) -> list[str]:
    """Faults, on rank 0."""
    os.environ.update(environment(scope))
    comm = pycomm.init()
    several = "," in transport
    assert several == (1 < len(comm.nodes) < comm.size), comm.nodes
    known = followers() if several else registry()
    between = transport.split(",")[-1]
    made = cases(known, comm.size, between, scope)
    if device:
        made = [case for case in made if placeable(case)]
    place = partial(DeviceMemory, device) if device else None
    reports = gathered(run_cases(comm, made, Oracle(), place))
    rank, size = comm.rank, comm.size
    pycomm.shutdown()
    if rank != 0:
        return []
    print(f"conformance: {size} ranks over {transport}, {scope}: {len(made)} cases", flush=True)
    left_out = [] if device else coverage_faults(made, known, size, between, scope)
    return left_out + judge(made, reports or [])


def main() -> int:
    transport, device = [*sys.argv[1:], None][:2]
    assert transport, __doc__
    os.environ["PYCOMM_TRANSPORTS"] = transport
    size = pycomm.init().size
    pycomm.shutdown()
    passes = scopes(transport.split(",")[-1], size)
    faults = [fault for scope in passes for fault in run_pass(transport, scope, device)]
    for fault in faults:
        print(fault, file=sys.stderr, flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
