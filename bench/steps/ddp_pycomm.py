"""torch's DistributedDataParallel on backend "pycomm". Options: `view`, gradients as views of the buckets;
`hook`, pycomm.torch's communication hook, or a codec, which is the hook with that codec."""

from __future__ import annotations

from collections.abc import Sequence

from torch.nn.parallel import DistributedDataParallel

import pycomm.torch
from bench import gloo
from bench.errors import BenchError
from bench.ranks import Ranks
from bench.steps import STEPS, Step
from bench.workloads import Workload


@STEPS.register("ddp-pycomm")
class DdpPycomm(Step):
    def __init__(self, options: Sequence[str], workload: Workload, ranks: Ranks) -> None:
        codecs = pycomm.info()["codecs"]
        known = {"view", "hook", *codecs}
        if not set(options) <= known:
            raise BenchError(f"ddp-pycomm: expected of {', '.join(sorted(known))}, got {' '.join(options)}")
        super().__init__((), workload, ranks)
        group = gloo.start(ranks).new_group(backend="pycomm")
        model = DistributedDataParallel(
            self.model, process_group=group, gradient_as_bucket_view="view" in options
        )
        chosen = [option for option in options if option in codecs]
        if chosen or "hook" in options:
            state = pycomm.torch.DdpState(codec=chosen[0] if chosen else "none", group=group)
            model.register_comm_hook(state, pycomm.torch.ddp_hook)
        self.model = model

    def close(self) -> None:
        gloo.stop()
