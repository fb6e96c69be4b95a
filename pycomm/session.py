"""Starting and ending: how a process becomes a rank.

`init()` connects this process with the others that the launcher started; nothing happens at import. At exit,
a healthy process lets MPI finalize; one whose communicator broke, or that ends by an uncaught exception, ends
the whole job with `MPI_Abort`, because finalizing would wait for peers that wait for it.
"""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pycomm import _core
from pycomm.communicator import Communicator, World
from pycomm.errors import Aborted, InvalidArgument, TransportError
from pycomm.exported import are_ours, export
from pycomm.features import check_transports
from pycomm.trace import Recording, wanted
from pycomm.tuned import load

# Variables by which launchers say how many processes they started, the innermost launcher first. Of Slurm the
# one that srun sets: SLURM_NTASKS is in a batch script too, which is one process.
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS")

_lock = threading.Lock()
_world: Communicator | None = None
_recording: Recording | None = None  # of the world, if it is traced
_lent: Communicator | None = None  # what init() returns meanwhile
_arguments: tuple[Any, Any] = (None, None)  # of the init() that made it, comm and trace
_pid = 0  # of the process that called init(), once it has
_healthy = True  # no world of this process ended broken, or with buffers in a transport's hands
_owns_mpi = False  # MPI was started here, and is finalized here


def init(comm: Any = None, trace: str | os.PathLike[str] | None = None) -> Communicator:
    """Connect with all other ranks and return their communicator. Blocks; all ranks call it; a second call
    returns the same one.

    comm: an mpi4py communicator to stand on; None is the world of `mpirun`, or this process alone where no
    launcher started it. trace: the file to which rank 0 writes a trace of all ranks when they shut down
    (pycomm/trace.py); None is what `PYCOMM_TRACE` says, if anything. Starts MPI (through mpi4py) only under a
    launcher, and then sets RANK, WORLD_SIZE and their kin for other libraries (pycomm/exported.py). A second
    call need not repeat either.

    Raises TransportError when the launcher and the MPI library do not belong together, or when MPI lacks
    MPI_THREAD_MULTIPLE; InvalidArgument for settings that do not hold here, on all ranks when the trace
    cannot be written, and where comm is None and RANK or WORLD_SIZE in the environment contradict the world;
    Aborted in a process forked from one that had called init().

    >>> comm = pycomm.init()
    >>> comm.rank, comm.size
    (0, 1)
    """
    with _lock:
        if _pid not in (0, os.getpid()):
            raise Aborted("this process was forked after pycomm.init(): start it before, or by 'spawn'")
        if _world is not None:
            _check_repeated(comm, trace)
            return _lent or _world
        alone = comm is None and not under_launcher()
        if alone:
            _check_variables(0, 1)
        trace = trace or os.environ.get("PYCOMM_TRACE")
        connect = partial(_connect, 0, 1, {}, [0]) if alone else partial(_connect_mpi, comm)
        return _begin(connect, comm, trace)


def init_over(rank: int, size: int, exchange: Callable[[bytes, float], list[bytes]]) -> Communicator:
    """`init()` where something else than MPI has brought the ranks together, as torchrun does.

    exchange: collective; given a rank's bytes, returns everyone's, by rank, or raises when that many seconds
    are over. The ranks must be on one node: nothing but MPI reaches further (TransportError says so).
    """
    with _lock:
        if _world is not None:
            raise InvalidArgument("init_over() after init(): shutdown() has to come between")
        return _begin(partial(_connect_over, rank, size, exchange), None, os.environ.get("PYCOMM_TRACE"))


def _begin(
    connect: Callable[[int], Communicator], comm: Any, trace: str | os.PathLike[str] | None
) -> Communicator:
    global _world, _recording, _arguments
    _register_exit()
    world = connect(wanted(trace))
    try:
        _recording = Recording.begin(world, trace)
    except BaseException:
        world._world.engine.close()
        raise
    if _recording is not None:
        _recording.of_this_process()
    _world, _arguments = world, (comm, trace)
    return _world


def _check_repeated(comm: Any, trace: str | os.PathLike[str] | None) -> None:
    for name, given, first in (("comm", comm, _arguments[0]), ("trace", trace, _arguments[1])):
        if given is not None and given != first:
            raise InvalidArgument(
                f"init() was called with {name} {first!r} before, and now with {given!r}: "
                "shutdown() has to come between"
            )


def is_initialized() -> bool:
    """Whether init() was called and shutdown() not."""
    return _world is not None


def shutdown() -> None:
    """Disconnect. Pending operations fail with `Aborted`. Called at exit by itself; calling it twice is fine.
    Does not wait for other ranks, unless a trace is gathered.

    `init()` may follow, on all ranks.
    """
    global _world
    if _lent is not None:
        raise InvalidArgument("shutdown() within a test: other tests need the connections of this process")
    with _lock:
        world, _world = _world, None
    if world is not None and _pid == os.getpid():
        _close(world)


def abort(code: int = 1) -> None:
    """End all processes of the job with exit status `code`, without cleaning up. Does not return.

    Events of a trace are saved first, each rank's for itself.
    """
    _end_recording(f"abort({code}) was called")
    sys.stdout.flush()
    sys.stderr.flush()
    _core.mpi_abort(code)
    os._exit(code)


def lend(comm: Communicator | None) -> None:
    """Let `init()` return this communicator instead, until lend(None): tests do not get the world itself."""
    global _lent
    _lent = comm


def forgive() -> None:
    """Let this process end by MPI_Finalize although a world of it broke, or left buffers to a transport: its
    caller knows that all ranks come to the end, and none waits."""
    global _healthy
    _healthy = True


def _register_exit() -> None:
    global _pid
    if _pid == 0:
        _pid = os.getpid()
        atexit.register(_at_exit)


def _close(world: Communicator, crash: str | None = None) -> None:
    global _healthy
    # A group's failure is this process's too: a peer may wait in it for ever.
    groups = [world, *world._world.groups]
    broken = next((group.broken for group in groups if group.broken is not None), None)
    try:
        _end_recording(crash or (str(broken) if broken else None))
    finally:
        _healthy = world._world.engine.close() and not broken and _healthy


def _end_recording(failure: str | None) -> None:
    global _recording
    recording, _recording = _recording, None
    if recording is not None and _pid == os.getpid():
        recording.end(failure)


def _at_exit() -> None:
    if _pid != os.getpid():
        return
    # Set by the interpreter when it printed an uncaught exception.
    crash = getattr(sys, "last_value", None)
    if _world is not None:
        _close(_world, None if crash is None else f"{type(crash).__name__}: {crash}")
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized():
        return
    if (crash is not None or not _healthy) and mpi.COMM_WORLD.Get_size() > 1:
        abort(1)
    if _owns_mpi:
        mpi.Finalize()


def under_launcher() -> bool:
    mpi4py = sys.modules.get("mpi4py.MPI")
    if mpi4py is not None and mpi4py.Is_initialized() and not mpi4py.Is_finalized():
        return True
    return any(name in os.environ for name in _SIZE_VARIABLES) or "PMIX_RANK" in os.environ


def _connect_mpi(comm: Any, trace_events: int) -> Communicator:
    # One libmpi for mpi4py and for us.
    os.environ.setdefault("MPI4PY_LIBMPI", _core.libmpi_path())
    _start_mpi()
    from mpi4py import MPI

    theirs, ours = MPI.Get_library_version().strip("\0 \n"), _core.mpi_info()["version"].strip("\0 \n")
    if theirs != ours:
        raise TransportError(
            f"mpi4py runs on '{theirs}', pycomm on '{ours}': they must share one MPI library. "
            "Import pycomm before mpi4py, or rebuild one of them."
        )
    _check_launcher(MPI.COMM_WORLD.Get_size(), ours)
    whole = comm is None
    if comm is None:
        comm = MPI.COMM_WORLD
        _check_variables(comm.Get_rank(), comm.Get_size())
    elif not isinstance(comm, MPI.Comm):
        raise InvalidArgument(f"comm is a {type(comm).__name__}; expected an mpi4py communicator")
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    leader = node.bcast(comm.Get_rank(), root=0)
    node.Free()
    nodes = comm.allgather(leader)
    handles = {"mpi": comm.py2f() & 0xFFFFFFFF}
    world = _connect(comm.Get_rank(), comm.Get_size(), handles, nodes, trace_events)
    if whole:
        export(world, comm.allgather)
    return world


def _start_mpi() -> None:
    """Prepare the import of mpi4py.MPI, which starts MPI.

    When that is our doing, so is MPI_Finalize: mpi4py would call it in forked children too, where it hangs.
    """
    global _owns_mpi
    if "mpi4py.MPI" not in sys.modules:
        import mpi4py

        mpi4py.rc.finalize = False
        _owns_mpi = True


def _check_launcher(size: int, library: str) -> None:
    if size > 1:
        return
    name = next((name for name in _SIZE_VARIABLES if name in os.environ), "")
    value = os.environ.get(name, "1")
    if value.isdigit() and int(value) > 1:
        raise TransportError(
            f"the launcher started {value} processes ({name}), but MPI sees one: this mpirun does not "
            f"belong to the MPI library in use, '{library.splitlines()[0]}', {_core.libmpi_path()}. "
            "Use `python -m pycomm.launch`, which finds the right one."
        )


def _check_variables(rank: int, size: int) -> None:
    """Where RANK and WORLD_SIZE say something else, ranks were started by torchrun, or numbered by hand."""
    for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
        if not are_ours() and os.environ.get(name, str(value)) != str(value):
            raise InvalidArgument(
                f"the environment says {name}={os.environ[name]}, but this process is rank {rank} of {size}: "
                "ranks are numbered by `python -m pycomm.launch -n N` or mpirun, not by hand or torchrun; "
                "unset RANK and WORLD_SIZE"
            )


def _connect(
    rank: int, size: int, handles: dict[str, int], nodes: list[int], trace_events: int
) -> Communicator:
    def create(thread: bool, table: str) -> _core.Engine:
        return _core.Engine.create(rank, size, handles, thread, [], None, trace_events, table=table)

    return _connected(create, rank, size, nodes)


def _connect_over(
    rank: int, size: int, exchange: Callable[[bytes, float], list[bytes]], trace_events: int
) -> Communicator:
    timeout_s = float(os.environ.get("PYCOMM_TIMEOUT_S", "300"))
    hosts = exchange(_host().encode(), timeout_s)

    def create(thread: bool, table: str) -> _core.Engine:
        return _core.Engine.create_over(rank, size, exchange, thread, trace_events, table)

    return _connected(create, rank, size, [hosts.index(host) for host in hosts])


def _host() -> str:
    """A name that differs between machines, and between the network namespaces of one."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/net")
    parts = [boot.read_text().strip() if boot.exists() else "", os.readlink(space) if space.exists() else ""]
    return " ".join([*parts, socket.gethostname()])


def _connected(
    create: Callable[[bool, str], _core.Engine], rank: int, size: int, nodes: list[int]
) -> Communicator:
    check_transports(filter(None, os.environ.get("PYCOMM_TRANSPORTS", "").split(",")))
    cores = _own_cores(nodes.count(nodes[rank]))
    table, problem = load() if rank == 0 else ("", "")
    engine = create(_wants_thread(size, cores), table)
    for warning in [*engine.warnings, *filter(None, [problem])]:
        warnings.warn(warning, stacklevel=5)
    if rank == 0:
        _warn_about_cores(cores, size)
    return Communicator(_core.Communicator(engine), World(engine, nodes, cores))


def _own_cores(local_size: int) -> int:
    """Cores this process may use, shared with its neighbours where the launcher did not bind them apart."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bound = allowed < (os.cpu_count() or 1)
    return allowed if bound else max(1, allowed // local_size)


def _wants_thread(size: int, cores: int) -> bool:
    choice = os.environ.get("PYCOMM_PROGRESS", "auto")
    if choice not in ("auto", "thread", "inline"):
        raise InvalidArgument(f"PYCOMM_PROGRESS is '{choice}'; expected auto, thread or inline")
    return size > 1 and (choice == "thread" or (choice == "auto" and cores > 1))


def _warn_about_cores(cores: int, size: int) -> None:
    torch = sys.modules.get("torch")
    threads = int(torch.get_num_threads()) if torch is not None and size > 1 else 1
    if threads > cores:
        warnings.warn(
            f"each rank computes with {threads} threads but has {cores} core(s) for itself: "
            f"set OMP_NUM_THREADS={cores} or call torch.set_num_threads({cores})",
            stacklevel=5,
        )
