"""Buckets: where slots lie, rounds, misuse, and that results are those of plain all_reduce."""

from __future__ import annotations

import time
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import pycomm
from pycomm import Buckets, Communicator, InvalidArgument, Slot
from pycomm.testing import run_threads

pytestmark = pytest.mark.timeout(60)

ALIGNMENT = 64
DTYPES = ("float64", "float32", "float16", "bfloat16")
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
few = hypothesis.settings(max_examples=60, deadline=None)

slot_lists = st.lists(
    st.builds(Slot, st.sampled_from([0, 1, 5, 63, 64, 65, 1000]), st.sampled_from(DTYPES), st.integers(0, 2)),
    max_size=20,
)


def alone(test: Any) -> Any:
    """Run on a single rank."""
    return run_threads(1, test)[0]


# ---- layout


@few
@hypothesis.given(slots=slot_lists, bucket_bytes=st.sampled_from([1, 256, 1000, 5000, 1 << 20]))
def test_layout(slots: list[Slot], bucket_bytes: int) -> None:
    def rank(comm: Communicator) -> None:
        buckets = Buckets(comm, slots, bucket_bytes)
        places = [buckets.place(i) for i in range(len(slots))]
        members: dict[int, list[int]] = {}
        for i, (bucket, offset, count) in enumerate(places):
            assert count == slots[i].count and offset % ALIGNMENT == 0
            assert offset + count <= len(buckets.flat[bucket])
            assert buckets.dtypes[bucket] == slots[i].dtype
            members.setdefault(bucket, []).append(i)
        assert sorted(members) == list(range(len(buckets)))
        for bucket, inside in members.items():
            assert len({(slots[i].group, slots[i].dtype) for i in inside}) == 1
            ends = [places[i][1] + places[i][2] for i in inside]
            assert all(end <= places[i][1] for end, i in zip(ends, inside[1:], strict=False)), (
                "slots overlap or are out of order"
            )
            item = ITEM_BYTES[buckets.dtypes[bucket]]
            before_last = sum(-(-slots[i].count // ALIGNMENT) * ALIGNMENT * item for i in inside[:-1])
            assert before_last < bucket_bytes, "the bucket was full before its last slot"
            assert (buckets.flat[bucket] == 0).all()
        last = [max(members[bucket]) for bucket in sorted(members)]
        assert last == sorted(last), "buckets are in the order in which they become full"

    alone(rank)


def test_dtypes_of_torch_and_numpy_and_by_name() -> None:
    def rank(comm: Communicator) -> Any:
        kinds = [torch.float32, np.float32, "float32", np.dtype("f4"), torch.bfloat16, "float16"]
        return Buckets(comm, [Slot(3, kind) for kind in kinds]).dtypes

    assert alone(rank) == ["float32", "bfloat16", "float16"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_are_the_buckets_memory_and_outlive_them(dtype: str) -> None:
    def rank(comm: Communicator) -> Any:
        buckets = Buckets(comm, [Slot(6, dtype), Slot(0, dtype), Slot(1, dtype)])
        view = buckets.torch_view(0, (2, 3))
        assert view.dtype == getattr(torch, dtype) and view.shape == (2, 3) and (view == 0).all()
        assert buckets.torch_view(1, (0, 4)).shape == (0, 4)
        assert buckets.torch_view(2, ()).shape == ()
        view.fill_(2)
        assert (
            buckets.view(0).tobytes()
            == torch.full((6,), 2, dtype=view.dtype).view(torch.uint8).numpy().tobytes()
        )
        del buckets
        return view

    assert (alone(rank) == 2).all()


# ---- rounds


def gradient(slot: int, rank: int, count: int, dtype: str, turn: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * turn + 10 * slot + rank)
    return torch.randint(-8, 8, (count,), generator=generator).to(getattr(torch, dtype))


@pytest.mark.parametrize("launch", ["full", "manual"])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("codec", [None, "fp16"])
def test_rounds_equal_plain_all_reduce(size: int, launch: str, codec: str | None) -> None:
    counts = [100, 0, 1, 64, 5000, 3]
    dtypes = ["float32", "float64"] if codec else list(DTYPES)
    slots = [Slot(count, dtypes[i % len(dtypes)], i % 2) for i, count in enumerate(counts * 3)]

    def rank(comm: Communicator) -> None:
        buckets = Buckets(comm, slots, bucket_bytes=2000, codec=codec, launch=launch)
        for turn in range(3):
            buckets.scale = 0.5 if turn else 1.0
            for i, slot in enumerate(slots):
                given = gradient(i, comm.rank, slot.count, slot.dtype, turn)
                if turn == 1:
                    buckets.torch_view(i, (slot.count,)).copy_(given)
                    full = buckets.mark(i)
                else:
                    full = buckets.put(i, given)
                assert buckets.filled(i)
                if launch == "manual":
                    for bucket in range(buckets.launched, full):
                        buckets.launch(bucket)
                assert buckets.launched == full
            assert full == len(buckets)
            buckets.flush()
            buckets.wait()
            assert buckets.used_bits() == [True] * len(slots)
            for i, slot in enumerate(slots):
                parts = [gradient(i, r, slot.count, slot.dtype, turn).double() for r in range(size)]
                want = buckets.scale * torch.stack(parts).sum(0)
                assert torch.equal(buckets.torch_view(i, (slot.count,)).double(), want)
                assert not buckets.filled(i)
            assert len(buckets.finished_s) == len(buckets.submitted_s) == len(buckets)
            assert all(a <= b for a, b in zip(buckets.submitted_s, buckets.finished_s, strict=True))
            assert buckets.submitted_s == sorted(buckets.submitted_s)
            assert (buckets.bytes_sent > 0) == (size > 1)

    run_threads(size, rank)


@pytest.mark.parametrize("size", [1, 3])
def test_random_values_have_the_bits_of_plain_all_reduce(size: int) -> None:
    counts = [1000, 37, 4096, 0, 65]

    def rank(comm: Communicator) -> None:
        random = np.random.default_rng(comm.rank)
        buckets = Buckets(comm, [Slot(count) for count in counts], bucket_bytes=8000, algorithm="direct")
        gradients = [random.normal(size=count).astype(np.float32) for count in counts]
        flat = [np.zeros(len(memory), np.float32) for memory in buckets.flat]
        buckets.scale = 1 / 3
        for i, given in enumerate(gradients):
            bucket, offset, count = buckets.place(i)
            flat[bucket][offset : offset + count] = given
            buckets.put(i, given)
        buckets.flush()
        buckets.wait()
        for memory, plain in zip(buckets.flat, flat, strict=True):
            comm.all_reduce(plain, scale=1 / 3, algorithm="direct")
            assert memory.tobytes() == plain.tobytes()

    run_threads(size, rank)


def test_slots_that_nobody_fills_are_zero_and_said_so() -> None:
    def rank(comm: Communicator) -> None:
        buckets = Buckets(comm, [Slot(10), Slot(5), Slot(7)], bucket_bytes=1)
        for turn in range(2):
            for flat in buckets.flat:
                flat[:] = 99  # of an earlier round
            buckets.put(0, np.ones(10, np.float32))
            if comm.rank == turn:
                buckets.put(2, np.full(7, 4.0, np.float32))
            buckets.flush()
            buckets.wait()
            assert buckets.used_bits() == [True, False, True]
            assert [buckets.view(i).tolist() for i in range(3)] == [[2.0] * 10, [0.0] * 5, [4.0] * 7]

    run_threads(2, rank)


def test_a_round_in_which_nothing_is_filled() -> None:
    def rank(comm: Communicator) -> None:
        buckets = Buckets(comm, [Slot(10), Slot(5)])
        buckets.flush()
        buckets.wait()
        assert buckets.used_bits() == [False, False] and not buckets.view(0).any()

    run_threads(2, rank)


def test_no_slots_at_all() -> None:
    def rank(comm: Communicator) -> None:
        buckets = Buckets(comm, [])
        buckets.flush()
        buckets.wait()
        assert len(buckets) == 0 and buckets.used_bits() == []

    run_threads(2, rank)


def test_buckets_are_launched_in_order_when_they_and_those_before_are_full() -> None:
    def rank(comm: Communicator) -> None:
        buckets = Buckets(comm, [Slot(4) for _ in range(4)], bucket_bytes=1)
        one = np.ones(4, np.float32)
        order = [2, 0, 3, 1] if comm.rank == 0 else [3, 1, 0, 2]
        full = [buckets.put(i, one) for i in order]
        assert full == ([0, 1, 1, 4] if comm.rank == 0 else [0, 0, 2, 4])
        buckets.flush()
        buckets.wait()
        assert all((buckets.view(i) == 2).all() for i in range(4))

    run_threads(2, rank)


def test_rounds_with_a_progress_thread_overlap_with_the_caller() -> None:
    def rank(comm: Communicator) -> None:
        buckets = Buckets(comm, [Slot(50_000) for _ in range(4)], bucket_bytes=1)
        for _ in range(3):
            for i in range(4):
                buckets.put(i, np.full(50_000, i + 1.0, np.float32))
            buckets.flush()
            buckets.wait()
            assert all((buckets.view(i) == 2 * (i + 1)).all() for i in range(4))

    run_threads(2, rank, progress="thread")


def test_reset_drops_a_round_of_which_nothing_is_launched() -> None:
    def rank(comm: Communicator) -> None:
        buckets = Buckets(comm, [Slot(4), Slot(4)])
        buckets.put(0, np.full(4, 7.0, np.float32))
        buckets.reset()
        for i in range(2):
            assert not buckets.filled(i)
            buckets.put(i, np.ones(4, np.float32))
        with pytest.raises(InvalidArgument, match="launched"):
            buckets.reset()
        buckets.flush()
        buckets.wait()
        assert (buckets.view(0) == 2).all()

    run_threads(2, rank)


def test_waiting_for_a_round_has_a_time_limit() -> None:
    def rank(comm: Communicator) -> None:
        buckets = Buckets(comm, [Slot(4)])
        if comm.rank == 0:
            buckets.put(0, np.ones(4, np.float32))
            buckets.flush()
            with pytest.raises(pycomm.Timeout):
                buckets.wait(timeout=0.1)
            comm.send(np.zeros(1), 1)
        else:
            comm.recv(np.zeros(1), 0)
            time.sleep(0.05)
            buckets.put(0, np.ones(4, np.float32))
            buckets.flush()
        buckets.wait(timeout=30)
        assert (buckets.view(0) == 2).all()

    run_threads(2, rank)


# ---- misuse


REFUSED: dict[str, tuple[Any, str]] = {
    "put twice": (
        lambda b: (b.put(0, np.ones(4, np.float32)), b.put(0, np.ones(4, np.float32))),
        "slot 0 of bucket 0 was already",
    ),
    "mark after put": (
        lambda b: (b.put(0, np.ones(4, np.float32)), b.mark(0)),
        "slot 0 of bucket 0 was already",
    ),
    "slot too high": (lambda b: b.put(2, np.ones(4, np.float32)), "slot is 2; expected 0 to 1"),
    "slot below zero": (lambda b: b.mark(-1), "slot is -1"),
    "another count": (lambda b: b.put(0, np.ones(5, np.float32)), "f32 x 5; expected f32 x 4"),
    "another dtype": (lambda b: b.put(0, np.ones(4)), "f64 x 4; expected f32 x 4"),
    "strides": (lambda b: b.put(0, np.ones(8, np.float32)[::2]), "not contiguous"),
    "launched before full": (lambda b: b.launch(0), "are not filled"),
    "launched out of order": (lambda b: b.launch(1), "expected 0, the next in order"),
    "waited before flush": (lambda b: b.wait(), "not flushed"),
    "filled of no slot": (lambda b: b.filled(9), "slot is 9"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_misuse_is_refused_and_the_round_goes_on(name: str) -> None:
    call, words = REFUSED[name]

    def rank(comm: Communicator) -> None:
        buckets = Buckets(comm, [Slot(4), Slot(3)], bucket_bytes=1, launch="manual")
        with pytest.raises(InvalidArgument, match=words):
            call(buckets)
        for i, count in ((0, 4), (1, 3)):
            if not buckets.filled(i):
                buckets.put(i, np.ones(count, np.float32))
        buckets.flush()
        buckets.wait()
        assert buckets.view(0).tolist() == [2.0] * 4 and buckets.view(1).tolist() == [2.0] * 3

    run_threads(2, rank)


@pytest.mark.parametrize(
    "call",
    [
        lambda b: b.put(1, np.full(3, 7.0, np.float32)),
        lambda b: b.mark(1),
        lambda b: b.flush(),
        lambda b: b.launch(2),
    ],
)
def test_a_flushed_round_takes_no_more(call: Any) -> None:
    """Its memory is in flight: a late gradient would be reduced half."""

    def rank(comm: Communicator) -> None:
        buckets = Buckets(comm, [Slot(4), Slot(3)], bucket_bytes=1)
        buckets.put(0, np.ones(4, np.float32))
        buckets.flush()
        with pytest.raises(InvalidArgument):
            call(buckets)
        buckets.wait()
        assert buckets.view(1).tolist() == [0.0] * 3 and buckets.used_bits() == [True, False]

    run_threads(2, rank)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"op": "mean"}, "'mean'"),
        ({"codec": "zip"}, "'zip'"),
        ({"algorithm": "fast"}, "'fast'"),
        ({"launch": "later"}, "'later'"),
        ({"bucket_bytes": 0}, "bucket_bytes is 0"),
        ({"slots": [Slot(-1)]}, "-1 elements"),
        ({"slots": [Slot(3, "complex64")]}, "complex64"),
        ({"slots": [Slot(3, "float16")], "codec": "fp16"}, "codec fp16"),
        ({"slots": [Slot(3, "int32")], "codec": "fp16"}, "codec fp16"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_at_once(options: dict[str, Any], words: str) -> None:
    def rank(comm: Communicator) -> None:
        with pytest.raises(InvalidArgument, match=words):
            Buckets(comm, options.pop("slots", [Slot(4)]), **options)

    alone(rank)


def test_a_round_survives_a_wrong_scale() -> None:
    def rank(comm: Communicator) -> None:
        buckets = Buckets(comm, [Slot(4), Slot(4)])
        buckets.put(0, np.ones(4, np.float32))
        for wrong in (float("nan"), float("inf")):
            buckets.scale = wrong
            with pytest.raises(InvalidArgument, match="scale is"):
                buckets.flush()
        buckets.scale = 2.0
        buckets.flush()
        buckets.wait()
        assert buckets.view(0).tolist() == [4.0] * 4 and buckets.used_bits() == [True, False]

    run_threads(2, rank)


def test_a_broken_communicator_fails_the_round_with_the_first_cause() -> None:
    def rank(comm: Communicator) -> None:
        buckets = Buckets(comm, [Slot(4)])
        if comm.rank == 1:
            comm.abort("enough")
        with pytest.raises(pycomm.Aborted, match="enough"):
            buckets.put(0, np.ones(4, np.float32))
            buckets.flush()
            buckets.wait()

    run_threads(2, rank)


def test_ranks_with_other_slots_are_a_mismatch() -> None:
    def rank(comm: Communicator) -> None:
        buckets = Buckets(comm, [Slot(100 if comm.rank else 200)])
        with pytest.raises(pycomm.MismatchError, match=r"f32 x 128.*f32 x 256|f32 x 256.*f32 x 128"):
            buckets.flush()
            buckets.wait()

    run_threads(2, rank)
