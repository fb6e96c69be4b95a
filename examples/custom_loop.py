"""Data parallelism by hand: torch for the model, pycomm for the gradients, and nothing else.

    python examples/custom_loop.py
    python -m pycomm.launch -n 4 examples/custom_loop.py

Every rank has the whole model and a part of each batch. Gradients are summed over all ranks while backward
still runs, a bucket of them at a time, so every rank takes the same step. `trainer.DataParallel` does this,
and looks after what is left out here: parameters without a gradient, accumulation, clipping, buffers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

import pycomm
from pycomm.buckets import Buckets, Slot

BATCH, STEPS = 30, 20


def data(step: int) -> tuple[Tensor, Tensor]:
    """The same batch on every rank: which samples there are must not depend on who asks."""
    x = torch.randn(BATCH, 8, generator=torch.Generator().manual_seed(step))
    return x, x.mean(1, keepdim=True).sin()


def train(model: nn.Module, comm: pycomm.Communicator) -> float:
    """Returns the last mean loss over all ranks; `model` has been trained, equally on all of them."""
    for parameter in model.parameters():  # all start from rank 0's
        comm.broadcast(parameter.detach(), root=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    # Backward makes gradients in about the reverse order of the parameters; so the first bucket is full, and
    # on its way, while the others are still computed.
    parameters = list(model.parameters())[::-1]
    buckets = Buckets(comm, [Slot(p.numel(), p.dtype) for p in parameters], bucket_bytes=4096)
    # Losses are sums, so sums over ranks are divided by the samples of all: right also for uneven parts.
    buckets.scale = 1 / BATCH
    slot_of = {parameter: slot for slot, parameter in enumerate(parameters)}

    def ready(parameter: Tensor) -> None:
        buckets.put(slot_of[parameter], parameter.grad)  # copies; does not block

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(ready)

    for step in range(STEPS):
        x, y = (part.tensor_split(comm.size)[comm.rank] for part in data(step))  # this rank's, maybe none
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x), y, reduction="sum")
        loss.backward()
        buckets.flush()  # the last bucket need not be full
        buckets.wait()
        for slot, parameter in enumerate(parameters):
            parameter.grad = buckets.torch_view(slot, parameter.shape)
        optimizer.step()
    return comm.all_reduce(loss.detach()).item() / BATCH


if __name__ == "__main__":
    comm = pycomm.init()
    torch.manual_seed(0)
    loss = train(nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1)), comm)
    print(f"rank {comm.rank} of {comm.size}: {loss:.6f}")
