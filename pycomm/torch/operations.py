"""The collectives and messages of torch.distributed on a communicator of pycomm's.

Every method starts its operation and returns a PycommWork; a call that nobody looks at before it is done (one
without `async_op`) runs to its end at once. Tensors are on the CPU, of any dtype, contiguous or not, also of
no elements. Operations of a group start in the order of the calls, which must be the same on all ranks; sends
and receives are matched by rank and tag.

Errors are pycomm's, which are RuntimeErrors: MismatchError where ranks made different calls, Timeout when the
group's timeout (or the call's own) is over, Aborted after abort(). All leave the group broken; but
InvalidArgument does not: it is raised before anything moves, or for a message that does not fit, which is
gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed.distributed_c10d as c10d
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions

from pycomm.communicator import Communicator
from pycomm.errors import InvalidArgument
from pycomm.grouped import SMALL_BYTES
from pycomm.torch.memory import bytes_per_element, copy_back, cut, dense, joined, moved, put, room_for
from pycomm.torch.messages import Messages
from pycomm.torch.reductions import reduction_of
from pycomm.torch.work import Finish, Pending, PycommWork, all_of, in_turn

Tensors = Sequence[Tensor]
Started = tuple[list[Pending], Finish | None]  # what runs, and what is to be done when it is over


class Operations:
    """What a group does. It stands on `communicator`, which is its own."""

    def __init__(self, communicator: Communicator, timeout: timedelta) -> None:
        self.communicator = communicator
        self.timeout_s = timeout.total_seconds()
        self._messages = Messages(communicator)
        self._coalescing: list[PycommWork] | None = None

    def rank(self) -> int:
        return self.communicator.rank

    def size(self) -> int:
        return self.communicator.size

    def set_timeout(self, timeout: timedelta) -> None:
        """The time for later operations."""
        self.timeout_s = timeout.total_seconds()

    def abort(self) -> None:
        """Break the group on all ranks: pending and later operations raise Aborted. Does not block."""
        self.communicator.abort(f"rank {self.rank()} called abort() of this process group")

    def shutdown(self) -> None:
        """Torch drops the group; what is in flight goes on."""

    # ---- everyone gets

    def allreduce(self, tensors: Tensors, options: Any = None) -> PycommWork:
        """Each tensor becomes its reduction over all ranks."""
        options = options or c10d.AllreduceOptions()
        return self._together([self._all_reduce(tensor, options) for tensor in tensors], tensors)

    def allreduce_coalesced(self, tensors: Tensors, options: Any = None) -> PycommWork:
        """The same of several tensors; small ones of one dtype travel as one."""
        options = options or c10d.AllreduceCoalescedOptions()
        small: dict[torch.dtype, list[Tensor]] = {}
        started = []
        for tensor in tensors:
            if tensor.nbytes <= SMALL_BYTES:
                small.setdefault(tensor.dtype, []).append(tensor)
            else:
                started.append(self._all_reduce(tensor, options))
        for alike in small.values():
            started.append(self._all_reduce_as_one(alike, options))
        return self._together(started, tensors)

    def broadcast(self, tensors: Tensors, options: Any = None) -> PycommWork:
        """Every rank's tensor becomes that of the root."""
        options = options or c10d.BroadcastOptions()
        (tensor,) = tensors
        memory = dense(tensor)
        pending = self._run("broadcast", options, moved(memory), root=options.rootRank)
        return self._work(pending, [tensor], copy_back(memory, tensor))

    def allgather(self, outputs: Sequence[Tensors], inputs: Tensors, options: Any = None) -> PycommWork:
        """outputs[0][r] becomes rank r's input, of as many elements; sizes may differ between ranks."""
        options = options or AllgatherOptions()
        (parts,), (tensor,) = outputs, inputs
        pending, finish = self._all_gather(parts, tensor, options)
        return self._work(pending, list(parts), finish)

    def allgather_coalesced(
        self, outputs: Sequence[Tensors], inputs: Tensors, options: Any = None
    ) -> PycommWork:
        """outputs[r][i] becomes inputs[i] of rank r."""
        options = options or AllgatherOptions()
        started = [
            self._all_gather([parts[index] for parts in outputs], tensor, options)
            for index, tensor in enumerate(inputs)
        ]
        return self._together(started, [part for parts in outputs for part in parts])

    def all_gather_single(self, output: Tensor, tensor: Tensor, options: Any = None) -> PycommWork:
        """output becomes all ranks' inputs, one after the other."""
        options = options or AllgatherOptions()
        pending, finish = self._all_gather_single(output, tensor, options)
        return self._work(pending, [output], finish)

    def all_gather_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, options: Any = None
    ) -> PycommWork:
        """The same of several tensors."""
        options = options or AllgatherOptions()
        pairs = zip(outputs, inputs, strict=True)
        return self._together([self._all_gather_single(o, i, options) for o, i in pairs], outputs)

    # ---- each rank gets its part

    def reduce_scatter(self, outputs: Tensors, inputs: Sequence[Tensors], options: Any = None) -> PycommWork:
        """outputs[0] becomes the reduction of inputs[0][rank] over all ranks; sizes may differ."""
        options = options or c10d.ReduceScatterOptions()
        (output,), (parts,) = outputs, inputs
        counts = [part.numel() for part in parts]
        pending, finish = self._reduce_scatter(output, joined(parts), counts, options)
        return self._work(pending, [output], finish)

    def reduce_scatter_single(self, output: Tensor, tensor: Tensor, options: Any = None) -> PycommWork:
        """output becomes this rank's part, one of `size` equal ones, of the reduction of the inputs."""
        options = options or c10d.ReduceScatterOptions()
        pending, finish = self._reduce_scatter_single(output, tensor, options)
        return self._work(pending, [output], finish)

    def reduce_scatter_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, options: Any = None
    ) -> PycommWork:
        """The same of several tensors."""
        options = options or c10d.ReduceScatterOptions()
        pairs = zip(outputs, inputs, strict=True)
        return self._together([self._reduce_scatter_single(o, i, options) for o, i in pairs], outputs)

    def all_to_all_single(
        self,
        output: Tensor,
        tensor: Tensor,
        output_splits: Sequence[int],
        input_splits: Sequence[int],
        options: Any = None,
    ) -> PycommWork:
        """Part r of the input, along dim 0, goes to rank r; output is what came, by rank. No splits: equal
        parts."""
        options = options or c10d.AllToAllOptions()
        memory, target = dense(tensor), room_for(output)
        counts = self._split_counts(tensor, input_splits, "input")
        received = self._split_counts(output, output_splits, "output")
        pending = self._exchange(target, memory, received, counts, options)
        return self._work(pending, [output], copy_back(target, output))

    def alltoall(self, outputs: Tensors, inputs: Tensors, options: Any = None) -> PycommWork:
        """inputs[r] goes to rank r; outputs[r] becomes what rank r gave. Sizes may differ."""
        options = options or c10d.AllToAllOptions()
        counts = [part.numel() for part in inputs]
        received = [part.numel() for part in outputs]
        target = torch.empty(sum(received), dtype=outputs[0].dtype)
        pending = self._exchange(target, joined(inputs), received, counts, options)
        return self._work(pending, list(outputs), lambda: cut(target, outputs))

    # ---- one rank gives or gets

    def reduce(self, tensors: Tensors, options: Any = None) -> PycommWork:
        """The root's tensor becomes the reduction; the others' stay as they are."""
        options = options or c10d.ReduceOptions()
        (tensor,) = tensors
        reduction = reduction_of(options.reduceOp, tensor.dtype)
        memory = dense(tensor)
        is_root = options.rootRank == self.rank()
        if not reduction.native:
            pending, rows = self._rows(memory, options)
            return self._work(
                pending, [tensor], lambda: put(reduction.fold(rows), tensor) if is_root else None
            )
        x = reduction.seen(memory)
        pending = self._run(
            "reduce",
            options,
            x,
            root=options.rootRank,
            op=reduction.op,
            scale=reduction.scale,
            out=x if is_root else None,
        )
        return self._work(pending, [tensor], copy_back(memory, tensor) if is_root else None)

    def gather(self, outputs: Sequence[Tensors], inputs: Tensors, options: Any = None) -> PycommWork:
        """At the root outputs[0][r] becomes rank r's input; all inputs have as many elements."""
        options = options or c10d.GatherOptions()
        (tensor,) = inputs
        memory = dense(tensor)
        if options.rootRank != self.rank():
            return self._work(self._run("gather", options, moved(memory), root=options.rootRank), [])
        (parts,) = outputs
        for part in parts:
            if part.numel() != tensor.numel():
                raise InvalidArgument(
                    f"gather: an output of {part.numel()} elements for inputs of {tensor.numel()}"
                )
        target = torch.empty(tensor.numel() * self.size(), dtype=tensor.dtype)
        pending = self._run("gather", options, moved(memory), root=options.rootRank, out=moved(target))
        return self._work(pending, list(parts), lambda: cut(target, parts))

    def scatter(self, outputs: Tensors, inputs: Sequence[Tensors], options: Any = None) -> PycommWork:
        """Every rank's outputs[0] becomes inputs[0][rank] of the root; all have as many elements."""
        options = options or c10d.ScatterOptions()
        (output,) = outputs
        target = room_for(output)
        source = None
        if options.rootRank == self.rank():
            (parts,) = inputs
            source = moved(joined(parts))
        pending = self._run("scatter", options, source, root=options.rootRank, out=moved(target))
        return self._work(pending, [output], copy_back(target, output))

    def barrier(self, options: Any = None, opts: Any = None) -> PycommWork:
        """Done when all ranks have come. Timeout names those that have not."""
        options = options or opts or c10d.BarrierOptions()
        return self._work(self._run("barrier", options), [])

    # ---- two ranks

    def send(self, tensors: Tensors, peer: int, tag: int) -> PycommWork:
        """Done when the tensor may be rewritten, which may be before it is received."""
        (tensor,) = tensors
        return self._work([self._messages.send(dense(tensor), peer, tag, self.timeout_s)], [tensor])

    def recv(self, tensors: Tensors, source: int, tag: int) -> PycommWork:
        """The tensor becomes the next message with that tag from rank `source`."""
        (tensor,) = tensors
        return self._work([self._messages.recv(tensor, source, tag, self.timeout_s)], [tensor])

    def recv_anysource(self, tensors: Tensors, tag: int) -> PycommWork:
        """The same from any rank; the work's `_source_rank()` says from whom it came."""
        (tensor,) = tensors
        return self._work([self._messages.recv(tensor, None, tag, self.timeout_s)], [tensor])

    # Names by which older versions of torch call them.
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
    alltoall_base = all_to_all_single

    # ---- several calls, one work

    def _start_coalescing(self, device: torch.device) -> None:
        self._coalescing = []

    def _end_coalescing(self, device: torch.device) -> PycommWork:
        works, self._coalescing = self._coalescing or [], None
        return all_of(works)

    # ---- how they run

    def _run(self, collective: str, options: Any, *args: Any, **named: Any) -> list[Pending]:
        """Starts a collective; one that nobody looks at before it is done runs to its end here."""
        timeout_s = options.timeout.total_seconds()
        named["timeout"] = timeout_s if timeout_s > 0 else self.timeout_s
        if getattr(options, "asyncOp", True) or self._coalescing is not None:
            return [getattr(self.communicator, f"{collective}_async")(*args, **named)]
        getattr(self.communicator, collective)(*args, **named)
        return []

    def _work(self, pending: list[Pending], result: list[Tensor], finish: Finish | None = None) -> PycommWork:
        work = PycommWork(pending, result, finish)
        if self._coalescing is not None:
            self._coalescing.append(work)
        return work

    def _together(self, started: Sequence[Started], result: Tensors) -> PycommWork:
        finishes = [finish for _, finish in started if finish is not None]
        return self._work([p for pending, _ in started for p in pending], list(result), in_turn(finishes))

    def _all_reduce(self, tensor: Tensor, options: Any) -> Started:
        reduction = reduction_of(options.reduceOp, tensor.dtype)
        memory = dense(tensor)
        if not reduction.native:
            pending, rows = self._rows(memory, options)
            return pending, lambda: put(reduction.fold(rows), tensor)
        x = reduction.seen(memory)
        pending = self._run("all_reduce", options, x, op=reduction.op, scale=reduction.scale)
        return pending, copy_back(memory, tensor)

    def _all_reduce_as_one(self, tensors: list[Tensor], options: Any) -> Started:
        if len(tensors) == 1:
            return self._all_reduce(tensors[0], options)
        memory = joined(tensors)
        pending, finish = self._all_reduce(memory, options)
        return pending, in_turn([*([finish] if finish else []), lambda: cut(memory, tensors)])

    def _all_gather(self, parts: Tensors, tensor: Tensor, options: Any) -> Started:
        target = torch.empty(sum(part.numel() for part in parts), dtype=tensor.dtype)
        memory, ratio = dense(tensor), bytes_per_element(tensor)
        counts = [part.numel() * ratio for part in parts]
        pending = self._run("all_gather", options, moved(memory), out=moved(target), counts=counts)
        return pending, lambda: cut(target, parts)

    def _all_gather_single(self, output: Tensor, tensor: Tensor, options: Any) -> Started:
        if output.numel() != tensor.numel() * self.size():
            raise InvalidArgument(
                f"all_gather: the output has {output.numel()} elements; expected {self.size()} times the "
                f"input's {tensor.numel()}"
            )
        target = room_for(output)
        pending = self._run("all_gather", options, moved(dense(tensor)), out=moved(target))
        return pending, copy_back(target, output)

    def _reduce_scatter_single(self, output: Tensor, tensor: Tensor, options: Any) -> Started:
        if tensor.numel() != output.numel() * self.size():
            raise InvalidArgument(
                f"reduce_scatter: the input has {tensor.numel()} elements; expected {self.size()} times the "
                f"output's {output.numel()}"
            )
        return self._reduce_scatter(output, dense(tensor), [output.numel()] * self.size(), options)

    def _reduce_scatter(self, output: Tensor, memory: Tensor, counts: list[int], options: Any) -> Started:
        reduction = reduction_of(options.reduceOp, memory.dtype)
        if not reduction.native:
            pending, rows = self._rows(memory, options)
            begin = sum(counts[: self.rank()])
            return pending, lambda: put(reduction.fold(rows[:, begin : begin + counts[self.rank()]]), output)
        target = room_for(output)
        pending = self._run(
            "reduce_scatter",
            options,
            reduction.seen(memory),
            op=reduction.op,
            scale=reduction.scale,
            out=reduction.seen(target),
            counts=[count * reduction.ratio for count in counts],
        )
        return pending, copy_back(target, output)

    def _rows(self, memory: Tensor, options: Any) -> tuple[list[Pending], Tensor]:
        """Everyone's values: (ranks, count), once the pending is done."""
        rows = memory.new_empty(self.size(), memory.numel())
        return self._run("all_gather", options, moved(memory), out=moved(rows)), rows

    def _exchange(
        self, target: Tensor, memory: Tensor, received: list[int], counts: list[int], options: Any
    ) -> list[Pending]:
        ratio = bytes_per_element(memory)
        return self._run(
            "all_to_all",
            options,
            moved(memory),
            out=moved(target),
            counts=[count * ratio for count in counts],
            received=[count * ratio for count in received],
        )

    def _split_counts(self, tensor: Tensor, splits: Sequence[int], which: str) -> list[int]:
        """Elements of each rank's part along dim 0."""
        length = tensor.shape[0] if tensor.dim() else 1
        if not splits and length % self.size():
            raise InvalidArgument(
                f"all_to_all: dim 0 of the {which} is {length}, not a multiple of {self.size()} ranks: pass "
                "split sizes"
            )
        sizes = list(splits) or [length // self.size()] * self.size()
        if len(sizes) != self.size() or sum(sizes) != length:
            raise InvalidArgument(
                f"all_to_all: {which} splits {sizes}; expected {self.size()} that add up to {length}"
            )
        row = tensor.numel() // length if length else 0
        return [size * row for size in sizes]
