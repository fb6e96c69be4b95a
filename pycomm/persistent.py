"""Operations that are made many times on the same arrays: checked and planned once (as MPI 4's persistent
collectives)."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pycomm import _core
from pycomm.collectives import Collectives
from pycomm.errors import InvalidArgument
from pycomm.request import Counts, Request, part_sizes, request
from pycomm.work import wait_for

T = TypeVar("T")


class Persistent(_core.Persistent, Generic[T]):
    """An operation on fixed arrays. `op()` runs it once, blocks, and returns the result; it raises what the
    plain call raises but for its arguments, and InvalidArgument when it is under way already. `op.start()`
    and `op.wait()` do the same in two steps. Like any collective it is made by all ranks in the same order,
    each time."""

    __slots__ = ("_communicator", "_work")

    def __init__(self, communicator: _core.Communicator, call: Request, result: T) -> None:
        super().__init__(communicator, call, result)
        self._communicator = communicator
        self._work: _core.Work | None = None

    if TYPE_CHECKING:

        def __call__(self) -> T: ...

    def start(self) -> None:
        """Start it; does not block."""
        self._work = self.submit()

    def wait(self, timeout: float | None = None) -> T:
        """Block until what start() started is done, and return its result. `timeout` as in `Work.wait`."""
        if self._work is None:
            raise InvalidArgument("wait() before start(): nothing is under way")
        wait_for(self._communicator, self._work, timeout)
        return self.result  # type: ignore[no-any-return]

    def done(self) -> bool:
        """Whether what start() started has ended, well or not; True before the first start."""
        return self._work is None or self._work.done()


class PersistentCollectives(Collectives):
    """The collectives with `_init` for a suffix take the plain call's arguments, check them, and return the
    operation. Nothing moves, and other ranks are not asked."""

    @abstractmethod
    def _prepare(self, call: Request, result: T) -> Persistent[T]: ...

    def all_reduce_init(
        self,
        x: T,
        op: str = "sum",
        out: T | None = None,
        codec: str | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        scale: float = 1.0,
        order: str = "any",
    ) -> Persistent[T]:
        """`all_reduce` to be made many times.

        >>> step = comm.all_reduce_init(np.ones(3, np.float32))   # on 2 ranks
        >>> step(), step()
        (array([4., 4., 4.], dtype=float32), array([4., 4., 4.], dtype=float32))
        """
        call = request("all_reduce", x, out, op, 0, scale, codec, algorithm, timeout, order=order)
        return self._prepare(call, x if out is None else out)

    def all_gather_init(
        self,
        x: T,
        out: T | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        counts: Counts | None = None,
    ) -> Persistent[T]:
        """`all_gather` to be made many times."""
        call = self._all_gather(x, out, algorithm, timeout, counts)
        return self._prepare(call, call.out)

    def reduce_scatter_init(
        self,
        x: T,
        op: str = "sum",
        out: T | None = None,
        codec: str | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        scale: float = 1.0,
        counts: Counts | None = None,
        order: str = "any",
    ) -> Persistent[T]:
        """`reduce_scatter` to be made many times."""
        call = self._reduce_scatter(x, op, out, codec, algorithm, timeout, scale, counts, order)
        return self._prepare(call, call.out)

    def all_to_all_init(
        self,
        x: T,
        out: T | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        counts: Counts | None = None,
        received: Counts | None = None,
    ) -> Persistent[T]:
        """`all_to_all` to be made many times; `counts` needs `received`."""
        if counts is not None and received is None:
            raise InvalidArgument("all_to_all_init: counts is given without received, which others know")
        sizes = part_sizes(counts, "counts", self.size)
        call = self._all_to_all(x, out, algorithm, timeout, sizes, received)
        return self._prepare(call, call.out)

    def broadcast_init(
        self, x: T, root: int = 0, algorithm: str | None = None, timeout: float | None = None
    ) -> Persistent[T]:
        """`broadcast` to be made many times."""
        call = request("broadcast", x, root=root, algorithm=algorithm, timeout=timeout)
        return self._prepare(call, x)

    def reduce_init(
        self,
        x: T,
        root: int = 0,
        op: str = "sum",
        out: T | None = None,
        codec: str | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        scale: float = 1.0,
        order: str = "any",
    ) -> Persistent[T | None]:
        """`reduce` to be made many times."""
        call = self._reduce(x, root, op, out, codec, algorithm, timeout, scale, order)
        return self._prepare(call, self._at_root(root, x if out is None else out))

    def gather_init(
        self,
        x: T,
        root: int = 0,
        out: T | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        counts: Counts | None = None,
    ) -> Persistent[T | None]:
        """`gather` to be made many times."""
        call = self._gather(x, root, out, algorithm, timeout, counts)
        return self._prepare(call, call.out)

    def scatter_init(
        self,
        x: T | None,
        root: int = 0,
        out: T | None = None,
        algorithm: str | None = None,
        timeout: float | None = None,
        counts: Counts | None = None,
    ) -> Persistent[T]:
        """`scatter` to be made many times."""
        call = self._scatter(x, root, out, algorithm, timeout, counts)
        return self._prepare(call, call.out)

    def send_init(self, x: Any, peer: int, timeout: float | None = None) -> Persistent[None]:
        """`send` to be made many times."""
        return self._prepare(request("send", x, root=peer, timeout=timeout), None)

    def recv_init(self, x: T, peer: int, timeout: float | None = None) -> Persistent[T]:
        """`recv` to be made many times."""
        return self._prepare(request("recv", x, root=peer, timeout=timeout), x)

    def barrier_init(self, timeout: float | None = None) -> Persistent[None]:
        """`barrier` to be made many times."""
        return self._prepare(request("barrier", None, timeout=timeout), None)
