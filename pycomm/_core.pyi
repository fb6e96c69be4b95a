"""
The collectives engine. Use it through the package pycomm.
"""
from __future__ import annotations
import collections.abc
import typing
__all__: list[str] = ['Bucketer', 'Communicator', 'Engine', 'Mail', 'Mailbox', 'Memory', 'OwnAlgorithm', 'Persistent', 'Pricer', 'ThreadWorld', 'Trace', 'Work', 'algorithms', 'allocate', 'available_isas', 'check_table', 'codecs', 'explain', 'group_facts', 'isa', 'libmpi_path', 'mpi_abort', 'mpi_info', 'plan_text', 'prices', 'supports', 'transports']
class Work:
    def abandon(self, why: str) -> None:
        ...
    def done(self) -> bool:
        ...
    def error(self) -> typing.Any:
        ...
    @property
    def bytes_sent(self) -> int:
        ...
    @property
    def finished_s(self) -> float:
        ...
    @property
    def started_s(self) -> float:
        ...
    @property
    def submitted_s(self) -> float:
        ...
class Trace:
    """
    What one rank records. Times are those of time.monotonic_ns().
    """
    def render(self, first: typing.SupportsInt | typing.SupportsIndex, last: typing.SupportsInt | typing.SupportsIndex, process: typing.SupportsInt | typing.SupportsIndex, zero_ns: typing.SupportsInt | typing.SupportsIndex, rate: typing.SupportsFloat | typing.SupportsIndex) -> bytes:
        """
        Events as JSON objects, each after a comma, on a clock that is 0 at zero_ns and runs at that rate.
        """
    def span(self, name: str, begin_ns: typing.SupportsInt | typing.SupportsIndex, end_ns: typing.SupportsInt | typing.SupportsIndex, arguments: str) -> None:
        """
        Records a span of the calling thread; `arguments` is the inside of a JSON object.
        """
    def start(self, capacity: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Begins recording; once.
        """
    def stop(self) -> None:
        ...
    @property
    def dropped(self) -> int:
        ...
    @property
    def recorded(self) -> int:
        ...
    @property
    def threads(self) -> dict[int, str]:
        """
        Names by the system's number of the thread; empty where it has none.
        """
class ThreadWorld:
    """
    What ranks that are threads of one process share.
    """
    def __init__(self, size: typing.SupportsInt | typing.SupportsIndex) -> None:
        ...
    def abort(self, why: str) -> None:
        ...
    def handles(self) -> dict[str, int]:
        ...
class Engine:
    @staticmethod
    def create(rank: typing.SupportsInt | typing.SupportsIndex, size: typing.SupportsInt | typing.SupportsIndex, handles: collections.abc.Mapping[str, typing.SupportsInt | typing.SupportsIndex], progress_thread: bool, transports: collections.abc.Sequence[str], world: ThreadWorld | None = None, trace_events: typing.SupportsInt | typing.SupportsIndex = 0, nodes: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = [], table: str = '') -> Engine:
        """
        Collective: connects this rank with the others.
        """
    @staticmethod
    def create_over(rank: typing.SupportsInt | typing.SupportsIndex, size: typing.SupportsInt | typing.SupportsIndex, exchange: collections.abc.Callable[[bytes, float], list[bytes]], progress_thread: bool, trace_events: typing.SupportsInt | typing.SupportsIndex = 0, table: str = '') -> Engine:
        """
        Collective: connects this rank with the others, whom `exchange(bytes, timeout_s)` finds: it gives everyone's bytes, by rank.
        """
    def close(self) -> bool:
        """
        Stops everything; pending operations fail with Aborted. True when no transport holds a buffer any more.
        """
    def transport_to(self, peer: typing.SupportsInt | typing.SupportsIndex) -> str:
        ...
    @property
    def closed(self) -> bool:
        ...
    @property
    def connections(self) -> list[int]:
        ...
    @property
    def has_progress_thread(self) -> bool:
        ...
    @property
    def timeout_s(self) -> float:
        ...
    @property
    def trace(self) -> Trace:
        ...
    @property
    def trace_events(self) -> int:
        ...
    @property
    def warnings(self) -> list[str]:
        ...
class OwnAlgorithm:
    def __init__(self, collective: str, root: typing.SupportsInt | typing.SupportsIndex, name: str, plans: collections.abc.Sequence[str], rank: typing.SupportsInt | typing.SupportsIndex, nodes: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> None:
        """
        Proves the plans of all ranks right, and readies this rank's. `nodes`: a number for each rank, equal on ranks of one node. Raises InvalidArgument.
        """
    @property
    def digest(self) -> int:
        ...
class Communicator:
    def __init__(self, engine: Engine) -> None:
        """
        The communicator of all ranks of an engine.
        """
    def abort(self, why: str) -> None:
        ...
    def error(self) -> typing.Any:
        ...
    def preferred_segment_bytes(self, world_ranks: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex]) -> int:
        ...
    def run(self, request: tuple) -> None:
        """
        Blocks until the operation is done.
        """
    def start(self, request: tuple) -> Work:
        """
        Starts an operation and does not block.
        """
    def subgroup(self, context: typing.SupportsInt | typing.SupportsIndex, rank: typing.SupportsInt | typing.SupportsIndex, world_ranks: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex], segment_bytes: typing.SupportsInt | typing.SupportsIndex) -> Communicator:
        ...
    def wait(self, work: Work, timeout_s: typing.SupportsFloat | typing.SupportsIndex) -> bool:
        """
        False when the time is over first; raises what made the work fail.
        """
    @property
    def context(self) -> int:
        ...
    @property
    def nodes(self) -> list[list[int]]:
        ...
    @property
    def rank(self) -> int:
        ...
    @property
    def segment_bytes(self) -> int:
        ...
    @property
    def size(self) -> int:
        ...
    @property
    def world_ranks(self) -> list[int]:
        ...
class Persistent:
    def __call__(self, *args, **kwargs):
        """
        Call self as a function.
        """
    def __init__(self, communicator: Communicator, request: tuple, result: typing.Any) -> None:
        """
        Checks and plans a call; moves nothing. Calling the object makes the call and returns `result`.
        """
    def submit(self) -> Work:
        """
        Starts it and does not block.
        """
    @property
    def result(self) -> typing.Any:
        ...
class Bucketer:
    def __init__(self, communicator: Communicator, buffers: collections.abc.Sequence[typing.Any], dtypes: collections.abc.Sequence[str], slots: collections.abc.Sequence[tuple[typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex]], op: str, codec: str, algorithm: str, order: str, launch_when_full: bool, soon: bool) -> None:
        ...
    def filled(self, slot: typing.SupportsInt | typing.SupportsIndex) -> bool:
        ...
    def finish_round(self) -> None:
        ...
    def flush(self, scale: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    def launch(self, bucket: typing.SupportsInt | typing.SupportsIndex, scale: typing.SupportsFloat | typing.SupportsIndex) -> None:
        ...
    def mark(self, slot: typing.SupportsInt | typing.SupportsIndex, scale: typing.SupportsFloat | typing.SupportsIndex) -> int:
        ...
    def put(self, slot: typing.SupportsInt | typing.SupportsIndex, gradient: typing.Any, scale: typing.SupportsFloat | typing.SupportsIndex) -> int:
        ...
    def reset(self) -> None:
        ...
    @property
    def launched(self) -> int:
        ...
    @property
    def used(self) -> list[int]:
        ...
    @property
    def works(self) -> list[Work]:
        ...
class Mail:
    """
    A message that has come.
    """
    @property
    def head(self) -> bytes:
        ...
    @property
    def pieces(self) -> list[tuple[int, int]]:
        """
        (offset, bytes) of each in the buffer.
        """
    @property
    def source(self) -> int:
        ...
class Mailbox:
    def __init__(self, communicator: Communicator, tag: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Moves what can be moved. Does not block.
        """
    def poke(self) -> None:
        """
        Moves what can be moved. Does not block.
        """
    def recv(self, source: typing.SupportsInt | typing.SupportsIndex, timeout_s: typing.SupportsFloat | typing.SupportsIndex) -> Mail | None:
        """
        Blocks until there is a message; None when the time is over first.
        """
    def submit(self, peer: typing.SupportsInt | typing.SupportsIndex, head: bytes, pieces: list[typing.Any], timeout_s: typing.SupportsFloat | typing.SupportsIndex) -> Work:
        """
        Starts a message. Does not block.
        """
    def take(self, source: typing.SupportsInt | typing.SupportsIndex) -> Mail | None:
        """
        The earliest message that is here. Does not block.
        """
    @property
    def tag(self) -> int:
        ...
class Memory:
    """
    Bytes that peers can address, until it is collected.
    """
class Pricer:
    def __init__(self, communicator: Communicator, collective: str, algorithm: str) -> None:
        ...
    def seconds(self, nbytes: typing.SupportsInt | typing.SupportsIndex, half: bool, prices: collections.abc.Mapping[str, typing.SupportsFloat | typing.SupportsIndex]) -> float:
        """
        The algorithm's price; what `prices` does not name has its built-in value.
        """
def algorithms() -> dict[str, dict[str, typing.Any]]:
    ...
def allocate(communicator: Communicator, bytes: typing.SupportsInt | typing.SupportsIndex) -> Memory | None:
    """
    Memory that peers of this communicator's world can address; None where they can address none.
    """
def available_isas() -> list[str]:
    ...
def check_table(lines: str) -> None:
    """
    Raises InvalidArgument for the text of a table that is none.
    """
def codecs() -> dict[str, dict[str, typing.Any]]:
    ...
def explain(communicator: Communicator, collective: str, nbytes: typing.SupportsInt | typing.SupportsIndex, dtype: str, codec: str, uneven: bool, algorithm: str, order: str) -> dict[str, typing.Any]:
    """
    How the algorithm of such a call is chosen. Local.
    """
def group_facts(communicator: Communicator) -> dict[str, typing.Any]:
    """
    What the choice knows of a communicator's ranks.
    """
def isa() -> str:
    """
    The instruction set of the kernels in use.
    """
def libmpi_path() -> str:
    ...
def mpi_abort(code: typing.SupportsInt | typing.SupportsIndex) -> None:
    """
    Ends every process of the MPI job. Returns only where MPI does not run.
    """
def mpi_info() -> dict[str, typing.Any]:
    ...
def plan_text(collective: str, algorithm: str, rank: typing.SupportsInt | typing.SupportsIndex, size: typing.SupportsInt | typing.SupportsIndex, root: typing.SupportsInt | typing.SupportsIndex, order: str, nodes: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = []) -> str:
    """
    The plan of a registered algorithm. `nodes`: a number for each rank, equal on ranks of one node.
    """
def prices(communicator: Communicator) -> dict[str, float]:
    """
    By which the plans of a communicator are priced, in seconds.
    """
def supports(algorithm: str, size: typing.SupportsInt | typing.SupportsIndex) -> bool:
    """
    Whether an algorithm serves that many ranks.
    """
def transports() -> dict[str, dict[str, typing.Any]]:
    ...
__version__: str = '0.1.0'
