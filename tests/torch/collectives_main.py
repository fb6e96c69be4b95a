"""Every collective of torch.distributed on backend "pycomm", against what torch computes from all ranks'
inputs: dtypes, operators, awkward shapes. Prints how many cases agreed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

import pycomm.torch

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
COMPLEX = (torch.complex64, torch.complex128)
DTYPES = (*FLOATS, *INTEGERS, *COMPLEX, torch.bool)
SHAPES: dict[str, Callable[[], Tensor]] = {
    "vector": lambda: torch.empty(37),
    "none": lambda: torch.empty(0),
    "scalar": lambda: torch.empty(()),
    "transposed": lambda: torch.empty(5, 7).t(),
    "strided": lambda: torch.empty(23)[::3],
    "misaligned": lambda: torch.empty(20)[1:],
    "long": lambda: torch.empty(20_001),
}
ADD, MULTIPLY = dist.ReduceOp.SUM, dist.ReduceOp.PRODUCT
FOLDS = {
    ADD: lambda rows: rows.to(torch.bool).any(0) if rows.dtype is torch.bool else rows.sum(0),
    dist.ReduceOp.AVG: lambda rows: rows.sum(0) / len(rows),
    MULTIPLY: lambda rows: rows.prod(0),
    dist.ReduceOp.MIN: lambda rows: rows.amin(0),
    dist.ReduceOp.MAX: lambda rows: rows.amax(0),
    dist.ReduceOp.BAND: lambda rows: folded(torch.bitwise_and, rows),
    dist.ReduceOp.BOR: lambda rows: folded(torch.bitwise_or, rows),
    dist.ReduceOp.BXOR: lambda rows: folded(torch.bitwise_xor, rows),
}
NAMES = {op: str(op).rsplit(".", 1)[-1] for op in FOLDS}

cases = 0


def folded(fold: Callable[[Tensor, Tensor], Tensor], rows: Tensor) -> Tensor:
    total = rows[0]
    for row in rows[1:]:
        total = fold(total, row)
    return total


def values(rank: int, count: int, dtype: torch.dtype, salt: int = 0) -> Tensor:
    """Whole numbers from 1 to 3, so that results are exact in every dtype and order."""
    numbers = (torch.arange(count) * 7 + 11 * rank + 5 * salt) % 3 + 1
    return numbers % 2 == 0 if dtype is torch.bool else numbers.to(dtype)


def filled(shape: str, rank: int, dtype: torch.dtype) -> Tensor:
    tensor = SHAPES[shape]()
    strided = torch.empty_strided(tensor.size(), tensor.stride(), dtype=dtype)
    strided.copy_(values(rank, tensor.numel(), dtype).view(tensor.shape))
    return strided


def equal(what: object, got: Tensor, expected: Tensor) -> None:
    global cases
    cases += 1
    if not torch.equal(got, expected.to(got.dtype).view(got.shape)):
        raise AssertionError(f"{what}: got {got}, expected {expected} on rank {dist.get_rank()}")


def reductions() -> Iterator[tuple[dist.ReduceOp, torch.dtype]]:
    for op, dtype in itertools.product(FOLDS, DTYPES):
        bitwise = op in (dist.ReduceOp.BAND, dist.ReduceOp.BOR, dist.ReduceOp.BXOR)
        ordered = op in (dist.ReduceOp.MIN, dist.ReduceOp.MAX)
        if bitwise and dtype in (*FLOATS, *COMPLEX):
            continue
        if (ordered or op == MULTIPLY) and dtype in COMPLEX:
            continue  # refused by torch itself
        if op == dist.ReduceOp.AVG and dtype not in (*FLOATS, *COMPLEX):
            continue
        yield op, dtype


def expected_reduction(op: dist.ReduceOp, count: int, dtype: torch.dtype, salt: int = 0) -> Tensor:
    rows = torch.stack([values(rank, count, dtype, salt) for rank in range(dist.get_world_size())])
    if dtype is torch.bool and op != ADD:
        return FOLDS[op](rows.to(torch.uint8)).to(torch.bool)
    wide = rows.to(torch.float64) if dtype in (torch.float16, torch.bfloat16) else rows
    return FOLDS[op](wide).to(dtype)


def all_reduce() -> None:
    rank = dist.get_rank()
    for (op, dtype), shape in itertools.product(reductions(), SHAPES):
        tensor = filled(shape, rank, dtype)
        dist.all_reduce(tensor, op)
        equal(("all_reduce", op, dtype, shape), tensor, expected_reduction(op, tensor.numel(), dtype))


def reduce_and_scatter() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    for op, dtype in reductions():
        for count in (0, 1, 13):
            whole = expected_reduction(op, count * size, dtype)
            output = torch.empty(count, dtype=dtype)
            dist.reduce_scatter_tensor(output, values(rank, count * size, dtype), op)
            equal(("reduce_scatter", op, dtype), output, whole[count * rank : count * (rank + 1)])
            tensor = values(rank, count, dtype)
            dist.reduce(tensor, size - 1, op)
            if rank == size - 1:
                equal(("reduce", op, dtype), tensor, expected_reduction(op, count, dtype))
        counts = [3 * r for r in range(size)]
        output = torch.empty(counts[rank], dtype=dtype)
        parts = [values(rank, n, dtype, salt=r) for r, n in enumerate(counts)]
        dist.reduce_scatter(output, parts, op)
        equal(("reduce_scatter", op, dtype), output, expected_reduction(op, counts[rank], dtype, salt=rank))


def gathers() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    for dtype, count in itertools.product(DTYPES, (0, 1, 17)):
        mine, all_ = values(rank, count, dtype), [values(r, count, dtype) for r in range(size)]
        whole = torch.empty(count * size, dtype=dtype)
        dist.all_gather_into_tensor(whole, mine)
        equal(("all_gather_single", dtype), whole, torch.cat(all_))
        parts = [torch.empty(2 * count, dtype=dtype)[::2] for _ in range(size)]
        dist.all_gather(parts, mine)
        for part, expected in zip(parts, all_, strict=True):
            equal(("all_gather", dtype), part, expected)
        parts = [torch.empty(count, dtype=dtype) for _ in range(size)]
        dist.gather(mine, parts if rank == 0 else None, dst=0)
        for part, expected in zip(parts, all_, strict=True):
            if rank == 0:
                equal(("gather", dtype), part, expected)
        output = torch.empty(count, dtype=dtype)
        dist.scatter(output, all_ if rank == size - 1 else None, src=size - 1)
        equal(("scatter", dtype), output, all_[rank])
        tensor = values(rank, count, dtype)
        dist.broadcast(tensor, size - 1)
        equal(("broadcast", dtype), tensor, all_[size - 1])


def exchanges() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    for dtype in DTYPES:
        given = [values(rank, r + rank, dtype, salt=r) for r in range(size)]
        expected = [values(r, r + rank, dtype, salt=rank) for r in range(size)]
        received = [torch.empty(r + rank, dtype=dtype) for r in range(size)]
        dist.all_to_all(received, given)
        for got, right in zip(received, expected, strict=True):
            equal(("all_to_all", dtype), got, right)
        output = torch.empty(sum(map(len, expected)), dtype=dtype)
        dist.all_to_all_single(output, torch.cat(given), [len(e) for e in expected], [len(g) for g in given])
        equal(("all_to_all_single", dtype), output, torch.cat(expected))
        rows = values(rank, 6 * size, dtype).view(2 * size, 3)
        output = torch.empty_like(rows)
        dist.all_to_all_single(output, rows)
        blocks = [values(r, 6 * size, dtype).view(2 * size, 3)[2 * rank : 2 * rank + 2] for r in range(size)]
        equal(("all_to_all_single, equal", dtype), output, torch.cat(blocks))


def several() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    counts = (3, 0, 40_000, 7)
    tensors = [values(rank, n, torch.float32) for n in counts]
    with dist._coalescing_manager():
        for tensor in tensors:
            dist.all_reduce(tensor)
    for tensor, n in zip(tensors, counts, strict=True):
        equal("coalesced all_reduce", tensor, expected_reduction(ADD, n, torch.float32))
    outputs = [torch.empty(n * size) for n in counts]
    with dist._coalescing_manager(async_ops=True) as manager:
        for output, n in zip(outputs, counts, strict=True):
            dist.all_gather_into_tensor(output, values(rank, n, torch.float32))
    manager.wait()
    for output, n in zip(outputs, counts, strict=True):
        equal("coalesced", output, torch.cat([values(r, n, torch.float32) for r in range(size)]))


def premultiplied() -> None:
    tensor = values(dist.get_rank(), 9, torch.float32)
    dist.all_reduce(tensor, dist._make_nccl_premul_sum(0.5))
    equal("premul_sum", tensor, expected_reduction(ADD, 9, torch.float32) / 2)


def futures() -> None:
    tensor = values(dist.get_rank(), 9, torch.float32)
    work = dist.all_reduce(tensor, async_op=True)
    doubled = work.get_future().then(lambda future: future.value()[0] * 2)
    doubled.wait()  # without a wait for the work
    equal("future", doubled.value(), expected_reduction(ADD, 9, torch.float32) * 2)
    assert work.is_completed() and work.is_success()
    work = dist.all_reduce(tensor, async_op=True)
    until_s = time.monotonic() + 20
    while not work.is_completed():  # moves what can be moved, with no thread to do it
        assert time.monotonic() < until_s
        time.sleep(1e-4)
    first = dist.all_reduce(torch.ones(4), async_op=True).get_future()
    # A callback that waits for another future, as torch's PowerSGD hook does.
    second = first.then(lambda _: dist.all_reduce(torch.ones(5), async_op=True).get_future().wait()[0])
    second.wait()
    equal("future in a future", second.value(), torch.full((5,), float(dist.get_world_size())))
    transposed = filled("transposed", dist.get_rank(), torch.int16)
    dist.all_reduce(transposed, async_op=True).get_future().wait()
    equal("future of a copy", transposed, expected_reduction(ADD, 35, torch.int16))


def messages() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    right, left = (rank + 1) % size, (rank - 1) % size
    for dtype in DTYPES:
        received = torch.empty(2, 5, dtype=dtype).t()
        calls = [
            dist.P2POp(dist.irecv, received, left),
            dist.P2POp(dist.isend, values(rank, 10, dtype).view(5, 2), right),
        ]
        for work in dist.batch_isend_irecv(calls):
            work.wait()
        equal(("ring", dtype), received, values(left, 10, dtype))
    # Tags keep apart what was sent in another order, and receives of one tag take it in theirs.
    sent = [dist.isend(values(rank, 4, torch.int64, salt=tag), right, tag=tag) for tag in (5, 6, 6)]
    second, first = torch.empty(4, dtype=torch.int64), torch.empty(4, dtype=torch.int64)
    works = [dist.irecv(first, left, tag=6), dist.irecv(second, left, tag=6)]
    works[1].wait()
    works[0].wait()
    equal("tag 6", first, values(left, 4, torch.int64, salt=6))
    equal("tag 6 again", second, values(left, 4, torch.int64, salt=6))
    weight = torch.zeros(3, requires_grad=True)  # pipelines receive into such
    sent.append(dist.isend(torch.ones(3), right, tag=7))
    dist.recv(weight, left, tag=7)
    equal("a leaf", weight.detach(), torch.ones(3))
    eight = torch.arange(6).to(torch.float8_e5m2)
    sent.append(dist.isend(eight, right, tag=8))
    received = torch.zeros(6, dtype=torch.float8_e5m2)
    dist.recv(received, left, tag=8)
    equal("8 bits", received.float(), eight.float())
    dist.recv(first, left, tag=5)
    equal("tag 5", first, values(left, 4, torch.int64, salt=5))
    for work in sent:
        work.wait()
    if rank > 0:
        dist.send(values(rank, 3, torch.float32), 0, tag=9)
    for _ in range(size - 1 if rank == 0 else 0):
        tensor = torch.empty(3)
        source = dist.recv(tensor, tag=9)
        equal("any source", tensor, values(source, 3, torch.float32))
    dist.barrier()


def groups() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    pairs = [dist.new_group([first, size - 1]) for first in range(size - 1)]
    for first in reversed(range(size - 1)):  # groups that overlap, in another order than they were made
        if rank in (first, size - 1):
            tensor = torch.tensor([float(rank)])
            dist.all_reduce(tensor, group=pairs[first])
            equal("overlapping groups", tensor, torch.tensor([first + size - 1.0]))
    everyone: list[object] = [None] * size
    dist.all_gather_object(everyone, {"rank": rank, "text": "x" * rank})
    assert everyone == [{"rank": r, "text": "x" * r} for r in range(size)]


if __name__ == "__main__":
    world = pycomm.init()
    dist.init_process_group("pycomm", timeout=timedelta(seconds=40))
    for part in (
        all_reduce,
        reduce_and_scatter,
        gathers,
        exchanges,
        several,
        premultiplied,
        futures,
        messages,
        groups,
    ):
        part()
    counted = cases
    dist.destroy_process_group()
    world.barrier()  # torch's store of the first group is gone, and none connects to it
    dist.init_process_group("pycomm")  # again, in the same process
    tensor = torch.ones(1)
    dist.all_reduce(tensor)
    assert tensor.item() == dist.get_world_size()
    if dist.get_rank() == 0:
        print(f"{counted} cases")
    dist.destroy_process_group()
