"""A training loop of your own out of the trainer's parts: accumulation, clipping, a schedule, checkpoints.

    python -m pycomm.launch -n 2 examples/custom_trainer.py runs/custom
    python -m pycomm.launch -n 3 examples/custom_trainer.py runs/custom --steps 40     # goes on, on 3 ranks

The loop is that of one process but for the lines marked (1) to (6). What it computes does not depend on the
number of ranks, up to the rounding of sums, nor on where it was interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import pycomm
from trainer import DataParallel, Zero
from trainer.checkpoint.saving import Saver
from trainer.checkpoint.stored import FOLDER, Checkpoint, saved
from trainer.schedules import replay

BATCH, MICRO_BATCHES, MAX_NORM, SAVE_EVERY = 30, 2, 0.25, 10


def data(step: int) -> tuple[Tensor, Tensor]:
    """The batch of a step: of the step alone, so that a resumed run goes on at the right sample."""
    x = torch.randn(BATCH, 8, generator=torch.Generator().manual_seed(step))
    return x, x.mean(1, keepdim=True).sin()


def train(model: nn.Module, comm: pycomm.Communicator, out: Path, steps: int, *, shard: bool) -> float:
    """Goes on from the newest checkpoint in `out`, if there is one. Returns the last step's mean loss.

    `shard`: each rank keeps a part of the momentum (ZeRO-1) rather than all of it.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    checkpoints = saved(out / FOLDER)
    done = max(checkpoints, default=0)
    replay(schedule, optimizer, done)
    parallel = (Zero if shard else DataParallel)(model, comm, optimizer, loss_reduction="sum")  # (1)
    # sync_metrics puts on the disk what belongs to a checkpoint besides: here there is nothing.
    with parallel, Saver(out, comm, every=SAVE_EVERY, keep=2, sync_metrics=lambda: None) as saver:
        if done:
            with Checkpoint(checkpoints[done]) as checkpoint:
                parallel.load_slices(checkpoint)  # (2) whatever the number of ranks that wrote it
        loss = torch.zeros(())
        for step in range(done, steps):
            optimizer.zero_grad()
            parallel.global_count = BATCH  # (3) the sum of all ranks' losses is divided by it
            mine = (part.tensor_split(comm.size)[comm.rank] for part in data(step))  # (4) maybe none
            *first, last = zip(*(part.tensor_split(MICRO_BATCHES) for part in mine), strict=True)
            loss = torch.zeros(())
            with parallel.no_sync():  # (5) gradients of these stay here, to be reduced with the last one's
                for x, y in first:
                    loss += backward(model, x, y)
            loss += backward(model, *last)
            parallel.clip_grad_norm_(MAX_NORM)  # (6) of the whole gradient, which no single rank may have
            optimizer.step()
            schedule.step()
            if saver.due(step + 1, last=step + 1 == steps):
                saver.save(step + 1, parallel.state_slices(), {})
        saver.finish(steps)
    return comm.all_reduce(loss).item() / BATCH


def backward(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = functional.mse_loss(model(x), y, reduction="sum")
    loss.backward()
    return loss.detach()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shard", action="store_true")
    options = parser.parse_args()
    comm = pycomm.init()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
    loss = train(model, comm, options.out, options.steps, shard=options.shard)
    print(f"rank {comm.rank} of {comm.size}: {loss:.6f} after {options.steps} steps")
