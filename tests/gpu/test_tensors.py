"""CUDA tensors as a program uses them: streams, asynchronous and persistent calls, mistakes."""

from __future__ import annotations

import pytest
import torch

from pycomm import Communicator, InvalidArgument, MismatchError
from pycomm.cuda import facts
from pycomm.testing import run_threads

pytestmark = pytest.mark.timeout(120)

LARGE = 10_000_019  # several pieces
SLEEP = 200_000_000  # cycles: a tenth of a second or so


def test_facts_name_every_card() -> None:
    known = facts()
    assert known["usable"] and not known["why"]
    assert [card["name"] for card in known["cards"]] == [
        torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
    ]


def test_results_lie_in_the_tensor_and_outlast_no_wait() -> None:
    def body(comm: Communicator) -> None:
        x = torch.full((LARGE,), float(comm.rank + 1), device="cuda")
        assert comm.all_reduce(x) is x
        assert bool((x == 3).all())
        gathered = comm.all_gather(torch.tensor([comm.rank, 7], device="cuda"))
        assert gathered.device.type == "cuda" and gathered.tolist() == [0, 7, 1, 7]

    run_threads(2, body)


@pytest.mark.parametrize("own_stream", [False, True])
def test_work_given_to_the_stream_before_the_call_is_awaited(own_stream: bool) -> None:
    def body(comm: Communicator) -> None:
        stream = torch.cuda.Stream() if own_stream else torch.cuda.default_stream()
        with torch.cuda.stream(stream):
            x = torch.zeros(LARGE, device="cuda")
            for turn in range(3):
                torch.cuda._sleep(SLEEP)
                x.fill_(comm.rank + turn)
                comm.all_reduce(x)
                y = x + 0  # given to the stream afterwards: it sees the result
                x.zero_()
                assert bool((y == 1 + 2 * turn).all())

    run_threads(2, body)


def test_calls_in_flight_hold_their_tensors() -> None:
    def body(comm: Communicator) -> None:
        works = [
            comm.all_reduce_async(torch.full((count,), float(comm.rank), device="cuda"))
            for count in (0, 1, 1000, LARGE, 5)
        ]
        torch.cuda.empty_cache()
        for work in works:
            assert bool((work.wait() == 1).all())

    run_threads(2, body)


def test_a_persistent_call_runs_again_and_again() -> None:
    def body(comm: Communicator) -> None:
        x = torch.zeros(100_003, device="cuda")
        operation = comm.all_reduce_init(x, op="avg")
        for turn in range(5):
            x.fill_(comm.rank + turn)
            operation()
            assert bool((x == turn + 0.5).all())

    run_threads(2, body)


def test_input_and_output_lie_in_one_place() -> None:
    def body(comm: Communicator) -> None:
        with pytest.raises(InvalidArgument, match="x is on cuda:0 and out is in host memory"):
            comm.all_reduce(torch.ones(3, device="cuda"), out=torch.ones(3))

    run_threads(1, body)


def test_ranks_on_a_card_and_on_the_host_do_not_match() -> None:
    def body(comm: Communicator) -> None:
        comm.all_reduce(torch.ones(3, device="cuda" if comm.rank else "cpu"))

    with pytest.raises(MismatchError, match="on a device"):
        run_threads(2, body)


def test_arrays_of_cupy_are_taken_and_made() -> None:
    cupy = pytest.importorskip("cupy")

    def body(comm: Communicator) -> None:
        x = cupy.full((1000, 3), comm.rank + 1, dtype=cupy.float32)
        assert comm.all_reduce(x) is x
        assert bool((x == 3).all())
        gathered = comm.all_gather(cupy.full(5, comm.rank, dtype=cupy.int64))
        assert isinstance(gathered, cupy.ndarray)
        assert gathered.tolist() == [0] * 5 + [1] * 5

    run_threads(2, body)
