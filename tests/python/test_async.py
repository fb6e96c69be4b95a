"""Operations in flight: many, dropped, waited for out of order, too short, or from several threads."""

from __future__ import annotations

import contextlib
import gc
import random
import threading
import time
import weakref

import numpy as np
import pytest
import torch

import pycomm
from pycomm import Communicator
from pycomm.testing import run_threads

pytestmark = pytest.mark.timeout(60)

PROGRESS = ("inline", "thread")


@pytest.fixture(params=PROGRESS)
def progress(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_progress_is_what_was_asked_for(progress: str) -> None:
    assert run_threads(2, lambda comm: comm.progress, progress=progress) == [progress] * 2


def test_many_operations_in_flight_keep_their_own_results(progress: str) -> None:
    def rank(comm: Communicator) -> None:
        counts = [random.Random(i).choice([0, 1, 7, 1000, 70_000]) for i in range(120)]
        arrays = [np.full(count, i + comm.rank, np.int64) for i, count in enumerate(counts)]
        works = [comm.all_reduce_async(x) for x in arrays]
        order = list(range(len(works)))
        random.Random(comm.rank).shuffle(order)  # every rank in another one
        for i in order:
            assert works[i].wait() is arrays[i]
            assert (arrays[i] == 2 * i + 1).all()
        assert all(work.done() and work.error() is None for work in works)

    run_threads(2, rank, progress=progress)


def test_a_dropped_work_goes_on_and_keeps_its_tensor_until_done(progress: str) -> None:
    go = threading.Event()

    def rank(comm: Communicator) -> None:
        if comm.rank == 1:
            assert go.wait(30)
            comm.all_reduce(torch.ones(1000))
            comm.barrier()
            comm.barrier()
            return
        tensor = torch.ones(1000)
        alive = weakref.ref(tensor)
        comm.all_reduce_async(tensor)
        del tensor
        gc.collect()
        assert alive() is not None  # in flight
        go.set()
        comm.barrier()  # comes after it
        comm.barrier()  # a later call lets go of what other threads could not
        assert alive() is None

    run_threads(2, rank, progress=progress)


def test_a_buffer_in_flight_cannot_be_resized() -> None:
    def rank(comm: Communicator) -> None:
        memory = bytearray(b"\x01" * 8)
        work = comm.all_reduce_async(memory)
        if not work.done():
            with pytest.raises(BufferError):
                memory.append(1)
        work.wait()
        del work
        comm.barrier()
        memory.append(1)
        assert memory == b"\x02" * 8 + b"\x01"

    run_threads(2, rank)


def test_a_wait_that_is_too_short_leaves_the_operation_running(progress: str) -> None:
    go = threading.Event()

    def rank(comm: Communicator) -> float:
        x = np.ones(100, np.float32)
        if comm.rank == 1:
            assert go.wait(30)
            return float(comm.all_reduce(x)[0])
        work = comm.all_reduce_async(x)
        for timeout in (0, 0.01, 0.2):
            start = time.monotonic()
            with pytest.raises(pycomm.Timeout, match="the operation goes on"):
                work.wait(timeout)
            assert time.monotonic() - start < timeout + 2
        assert not work.done() and work.error() is None and comm.broken is None
        assert work.bytes_sent == 0 and work.finished_s == 0.0
        go.set()
        return float(work.wait(timeout=30)[0])

    assert run_threads(2, rank, progress=progress) == [2.0, 2.0]


def test_waiting_twice_and_for_nothing_returns_at_once() -> None:
    def rank(comm: Communicator) -> None:
        x = np.ones(3)
        work = comm.all_reduce_async(x)
        assert work.wait() is x and work.wait() is x and work.wait(0) is x
        assert comm.send_async(x, 1 - comm.rank) and comm.recv(np.empty(3), 1 - comm.rank) is not None
        assert comm.barrier_async().wait() is None

    run_threads(2, rank)


def test_a_work_knows_its_times_and_bytes() -> None:
    def rank(comm: Communicator) -> None:
        before = time.monotonic()
        work = comm.all_reduce_async(np.ones(1000, np.float32), algorithm="ring")
        work.wait()
        assert before <= work.submitted_s <= work.started_s <= work.finished_s <= time.monotonic()
        assert work.bytes_sent == 2 * (comm.size - 1) * 4000 // comm.size

    run_threads(4, rank, transport="inproc")


def test_operations_advance_by_themselves_with_a_progress_thread() -> None:
    def rank(comm: Communicator) -> None:
        work = comm.all_reduce_async(np.ones(200_000, np.float32))
        until = time.monotonic() + 30
        while not work.done():
            assert time.monotonic() < until
            time.sleep(0.001)

    run_threads(2, rank, progress="thread")


def test_without_a_progress_thread_operations_advance_only_in_calls() -> None:
    def rank(comm: Communicator) -> bool:
        work = comm.all_reduce_async(np.ones(8, np.float32))
        time.sleep(0.05)
        early = work.done()
        work.wait()
        return early

    assert run_threads(2, rank, progress="inline") == [False, False]


def test_any_wait_advances_all_operations() -> None:
    """Rank 0 waits for the second of two first; rank 1 for the first."""

    def rank(comm: Communicator) -> None:
        first, second = (comm.all_reduce_async(np.full(5000, float(i))) for i in (1, 2))
        for work in (second, first) if comm.rank == 0 else (first, second):
            work.wait(timeout=30)

    run_threads(2, rank, progress="inline")


def test_several_threads_wait_for_their_own_operations(progress: str) -> None:
    def rank(comm: Communicator) -> None:
        arrays = [np.full(20_000, i + 1.0) for i in range(8)]
        works = [comm.all_reduce_async(x) for x in arrays]
        errors: list[BaseException] = []

        def wait(i: int) -> None:
            try:
                assert (works[i].wait(timeout=30) == 2 * (i + 1)).all()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=wait, args=(i,)) for i in reversed(range(8))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not errors and not any(thread.is_alive() for thread in threads)

    run_threads(2, rank, progress=progress)


def test_several_threads_wait_for_the_same_operation(progress: str) -> None:
    go = threading.Event()

    def rank(comm: Communicator) -> None:
        if comm.rank == 1:
            assert go.wait(30)
            comm.barrier()
            return
        work = comm.barrier_async()
        ended: list[float] = []
        threads = [
            threading.Thread(target=lambda: (work.wait(30), ended.append(time.monotonic()))) for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.05)
        assert not ended
        go.set()
        for thread in threads:
            thread.join(30)
        assert len(ended) == 5

    run_threads(2, rank, progress=progress)


def test_communicators_are_independent_of_the_order_in_which_threads_use_them(progress: str) -> None:
    """Rank 0 does A then B from two threads, rank 1 B then A: neither may wait for the other to begin."""

    def rank(comm: Communicator) -> None:
        a, b = comm.split(0), comm.split(0)
        assert a is not None and b is not None
        order = [(a, "a"), (b, "b")] if comm.rank == 0 else [(b, "b"), (a, "a")]
        results: dict[str, float] = {}

        def blocking(of: Communicator, name: str) -> None:
            results[name] = float(of.all_reduce(np.full(3000, comm.rank + 1.0), timeout=30)[0])

        threads = []
        for of, name in order:
            threads.append(threading.Thread(target=blocking, args=(of, name)))
            threads[-1].start()
            time.sleep(0.05)  # the first blocks before the second begins
        for thread in threads:
            thread.join(30)
        assert results == {"a": 3.0, "b": 3.0}

    run_threads(2, rank, progress=progress)


def test_threads_of_a_rank_may_share_a_communicator_for_messages(progress: str) -> None:
    def rank(comm: Communicator) -> None:
        other = 1 - comm.rank
        got = np.empty(4000)

        def receive() -> None:
            for _ in range(20):
                comm.recv(got, other, timeout=30)

        thread = threading.Thread(target=receive)
        thread.start()
        for i in range(20):
            comm.send(np.full(4000, float(i)), other, timeout=30)
        thread.join(30)
        assert (got == 19).all()

    run_threads(2, rank, progress=progress)


def test_shutting_down_an_engine_wakes_threads_that_wait(progress: str) -> None:
    def rank(comm: Communicator) -> None:
        if comm.rank == 1:
            return
        outcome: list[str] = []

        def wait() -> None:
            try:
                comm.all_reduce(np.ones(3), timeout=50)
            except pycomm.Aborted as error:
                outcome.append(str(error))

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)
        comm._world.engine.close()
        thread.join(20)
        assert not thread.is_alive() and outcome
        assert "rank 0 of 2" in repr(comm) and comm.transport == "inproc_mapped"
        for call in (comm.barrier, lambda: comm.split(0), lambda: comm.all_reduce_async(np.ones(1))):
            with pytest.raises(pycomm.Aborted, match="shut down"):
                call()

    run_threads(2, rank, progress=progress)


def test_a_rank_may_end_while_its_operations_run(progress: str) -> None:
    """They fail on all ranks, and nothing crashes."""

    def rank(comm: Communicator) -> None:
        with contextlib.suppress(pycomm.Aborted):  # the other one may be first
            for _ in range(20):
                comm.all_reduce_async(np.ones(30_000, np.float32))

    for _ in range(3):
        run_threads(2, rank, progress=progress)
        gc.collect()
