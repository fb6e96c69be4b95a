"""Evaluation over all ranks: every sample counts exactly once, at any number of ranks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pycomm import Communicator
from trainer.data import Task

CHUNK = 1024  # samples in one forward


def evaluate(
    model: nn.Module, task: Task, inputs: Tensor, targets: Tensor, comm: Communicator
) -> dict[str, float | int]:
    """Loss and measures, each per sample, and `count`. Collective, blocks; all ranks get the same numbers.

    Rank r takes part r of numpy.array_split(samples, size), maybe an empty one; sums are added in float64.
    """
    mine = torch.from_numpy(np.array_split(np.arange(len(inputs)), comm.size)[comm.rank])
    sums = torch.zeros(2 + len(task.measures), dtype=torch.float64)
    training = model.training
    model.eval()
    with torch.no_grad():
        for chunk in mine.split(CHUNK) if len(mine) else ():
            outputs, expected = model(inputs[chunk]), targets[chunk]
            sums += torch.tensor(
                [
                    len(chunk),
                    task.loss(outputs, expected).item(),
                    *(measure(outputs, expected).item() for measure in task.measures.values()),
                ],
                dtype=torch.float64,
            )
    model.train(training)
    comm.all_reduce(sums)
    count, *rest = sums.tolist()
    values = {name: total / count for name, total in zip(("loss", *task.measures), rest, strict=True)}
    return {**values, "count": int(count)}
