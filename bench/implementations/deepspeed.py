"""DeepSpeed's all-reduce in shared memory (CPU), behind its `inference_all_reduce`: sums of float32 and of
float16, in place, on ranks of one node. DeepSpeed compiles it when it is first used."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from functools import partial

from bench.errors import BenchError
from bench.implementations import IMPLEMENTATIONS, Call, Implementation, UnsupportedError
from bench.operations import Case
from bench.ranks import Ranks


@IMPLEMENTATIONS.register("deepspeed")
class DeepSpeed(Implementation):
    def __init__(self, options: Sequence[str], ranks: Ranks) -> None:
        super().__init__(options, ranks)
        if ranks.nodes() > 1:
            raise BenchError(f"deepspeed: expected ranks of one node, got {ranks.nodes()} nodes")
        try:
            builder = importlib.import_module("deepspeed.ops.op_builder.cpu.comm").ShareMemCommBuilder()
        except ModuleNotFoundError as error:
            raise BenchError(f"deepspeed: {error}; pip install deepspeed") from error
        # Its segments are named by these; the number keeps runs apart.
        job = ranks.gather(os.getpid())[0]
        os.environ.update(LOCAL_SIZE=str(ranks.size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job))
        for turn in range(2):  # rank 0 compiles, the others find it done
            if (ranks.rank == 0) == (turn == 0):
                library = builder.load(verbose=False)
            ranks.barrier()
        library.initialize(ranks.size, ranks.rank)

    def all_reduce(self, case: Case) -> Call:
        import torch

        if case.redop != "sum" or case.input.dtype.name not in ("float32", "float16"):
            raise UnsupportedError(f"has no {case.redop} of {case.input.dtype.name}")
        return partial(torch.ops.deepspeed.inference_all_reduce_, torch.from_numpy(case.input))
