"""Ranks that make different calls are told so, with both calls, before a byte reaches anybody's array."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pycomm import Communicator, MismatchError, _core
from pycomm.testing import run_threads

pytestmark = pytest.mark.timeout(60)

Call = Callable[[Communicator, Any], Any]


def array(comm: Communicator, count: int = 8, dtype: Any = np.float32) -> Any:
    return np.full(count, comm.rank + 1, dtype)


# Name: rank 0's call, the other's, and what the message must hold of the two.
DIFFERENT: dict[str, tuple[Call, Call, str, str]] = {
    "count": (
        lambda c, x: c.all_reduce(x),
        lambda c, x: c.all_reduce(x[:7]),
        "f32 x 8",
        "f32 x 7",
    ),
    "long and short": (
        lambda c, x: c.all_reduce(np.ones(100_000, np.float32), algorithm="ring"),
        lambda c, x: c.all_reduce(x, algorithm="ring"),
        "f32 x 100000",
        "f32 x 8",
    ),
    "something and nothing": (
        lambda c, x: c.all_reduce(x),
        lambda c, x: c.all_reduce(x[:0]),
        "f32 x 8",
        "f32 x 0",
    ),
    "dtype": (
        lambda c, x: c.all_reduce(x),
        lambda c, x: c.all_reduce(x.astype(np.int32)),
        "f32 x 8",
        "i32 x 8",
    ),
    "op": (lambda c, x: c.all_reduce(x), lambda c, x: c.all_reduce(x, op="max"), "op sum", "op max"),
    "scale": (
        lambda c, x: c.all_reduce(x, scale=0.5),
        lambda c, x: c.all_reduce(x, scale=0.25),
        "scale 0.5",
        "scale 0.25",
    ),
    "codec": (
        lambda c, x: c.all_reduce(x, codec="fp16", algorithm="ring"),
        lambda c, x: c.all_reduce(x, codec="bf16", algorithm="ring"),
        "codec fp16",
        "codec bf16",
    ),
    "algorithm": (
        lambda c, x: c.all_reduce(x, algorithm="ring"),
        lambda c, x: c.all_reduce(x, algorithm="direct"),
        "all_reduce:ring",
        "all_reduce:direct",
    ),
    "collective": (lambda c, x: c.all_reduce(x), lambda c, x: c.barrier(), "all_reduce(", "barrier("),
    "order": (
        lambda c, x: (c.all_reduce_async(x), c.all_gather(x)),
        lambda c, x: (c.all_gather_async(x), c.all_reduce(x)),
        "all_reduce(",
        "all_gather(",
    ),
    "mapped": (
        lambda c, x: c.all_reduce(x, algorithm="mapped"),
        lambda c, x: c.all_reduce(x[:7], algorithm="mapped"),
        "f32 x 8",
        "f32 x 7",
    ),
}


def outcome(comm: Communicator, call: Call) -> tuple[str, list[float]]:
    x = array(comm)
    with pytest.raises(MismatchError) as caught:
        call(comm, x)
        comm.barrier()
    with pytest.raises(MismatchError):
        comm.all_reduce(array(comm))
    assert isinstance(comm.broken, MismatchError)
    return str(caught.value), x.tolist()


@pytest.mark.parametrize("name", DIFFERENT)
@pytest.mark.parametrize("size", [2, 3])
def test_mismatch_holds_both_calls(name: str, size: int) -> None:
    call, other, one_part, other_part = DIFFERENT[name]

    def rank(comm: Communicator) -> tuple[str, list[float]]:
        return outcome(comm, call if comm.rank == 0 else other)

    for number, (message, x) in enumerate(run_threads(size, rank)):
        assert one_part in message and other_part in message, message
        assert "rank" in message and "operation 0 of communicator 0" in message
        # Nothing of a foreign call has come in; an own sum may have begun in place.
        if size == 2 and name not in ("order", "long and short"):
            assert all(value == number + 1 for value in x), (name, x)


def test_a_message_of_another_size_is_a_mismatch() -> None:
    def rank(comm: Communicator) -> str:
        with pytest.raises(MismatchError) as caught:
            if comm.rank == 0:
                comm.send(array(comm), 1)
                comm.barrier(timeout=20)
            else:
                comm.recv(array(comm, 9), 0)
        return str(caught.value)

    for message in run_threads(2, rank):
        assert "f32 x 8" in message and "f32 x 9" in message


def test_other_communicators_go_on() -> None:
    def rank(comm: Communicator) -> float:
        pair = comm.split(0)
        alone = comm.split(comm.rank)
        assert pair is not None and alone is not None
        with pytest.raises(MismatchError):
            pair.all_reduce(array(comm, 8 + comm.rank))
            pair.barrier()
        assert comm.broken is None and alone.broken is None
        assert alone.all_reduce(array(comm)).tolist() == array(comm).tolist()
        with pytest.raises(MismatchError):
            pair.split(0)
        return float(comm.all_reduce(array(comm))[0])

    assert run_threads(3, rank) == [6.0, 6.0, 6.0]


def test_operations_in_flight_all_fail_with_the_first_cause() -> None:
    def rank(comm: Communicator) -> None:
        good = [comm.all_reduce_async(array(comm, 50_000), algorithm="ring") for _ in range(3)]
        bad = comm.all_reduce_async(array(comm, 5 + comm.rank))
        after = [comm.all_reduce_async(array(comm)) for _ in range(3)]
        with pytest.raises(MismatchError) as first:
            bad.wait()
        for work in after:
            with pytest.raises(MismatchError):
                work.wait()
            assert isinstance(work.error(), MismatchError)
        with pytest.raises(MismatchError) as later:
            comm.barrier()
        assert str(later.value) == str(comm.broken) or str(first.value) in str(later.value)
        for work in good:  # the first ones may have been faster
            try:
                work.wait()
            except MismatchError:
                assert isinstance(work.error(), MismatchError)
            assert work.done()

    run_threads(2, rank)


def test_settings_that_differ_are_rank_zeros_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines read the environment one after the other."""
    world = _core.ThreadWorld(2)
    engines: dict[int, Any] = {}

    def join(rank: int) -> None:
        engines[rank] = _core.Engine.create(rank, 2, world.handles(), False, [])

    threads = []
    for rank, value in ((0, "3"), (1, "5")):
        monkeypatch.setenv("PYCOMM_TIMEOUT_S", value)
        thread = threading.Thread(target=join, args=(rank,), daemon=True)
        thread.start()
        if rank == 0:
            thread.join(0.3)  # it has read its environment, and waits for the other
        threads.append(thread)
    for thread in threads:
        thread.join(10)
    assert [engines[rank].timeout_s for rank in (0, 1)] == [3.0, 3.0]
    assert len(engines[0].warnings) == 1 and engines[1].warnings == []
    assert "rank 1" in engines[0].warnings[0] and "timeout_s=5" in engines[0].warnings[0]
    for engine in engines.values():
        engine.close()
