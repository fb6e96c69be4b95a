"""A 2-10-3 network on 20 samples over two ranks: disjoint samples that together are all of them.

The first loss is close to ln 3, the loss of a network that knows nothing of three classes: with z a sample's
logits less their mean, loss - ln 3 = log(mean exp z) - z[label]. The first term is half the variance of z, to
second order; the second has mean 0 over labels that know nothing of the network, and over 20 samples a
standard deviation of sqrt(variance / 20). The distance allowed is the former plus three of the latter.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch.nn import functional

from tests.seeds.table import Table
from tests.seeds.training import Training, difference, in_one_process, loss_difference, on_ranks
from trainer import MODELS


def test_two_ranks_share_twenty_samples(table: Table) -> None:
    torch.manual_seed(5)
    model = MODELS.build("mlp", inputs=2, outputs=3, hidden=10)
    inputs, labels = torch.randn(20, 2), torch.randint(3, (20,))
    loss = partial(functional.cross_entropy, reduction="sum")
    optimizer = partial(torch.optim.SGD, lr=0.1)
    training = Training(inputs, labels, model, loss, optimizer, global_batch=20, steps=30)
    expected, (first, second) = in_one_process(training), on_ranks(training, 2)

    for taken in zip(first.samples, second.samples, strict=True):
        assert not set(taken[0]) & set(taken[1])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    together = {len(set(ours + theirs)) for ours, theirs in zip(first.samples, second.samples, strict=True)}
    variance = model(inputs).var(1, unbiased=False).mean().item()
    close = variance / 2 + 3 * math.sqrt(variance / 20)
    table.equal("parameters", 63, parameters, ranks=2)
    table.equal(
        "samples of each rank", {10}, {len(taken) for taken in first.samples + second.samples}, ranks=2
    )
    table.equal("different samples in each step", {20}, together, ranks=2)
    table.near("first loss (ln 3)", math.log(3), first.losses[0], within=close, ranks=2)
    table.at_most("parameters beside a batch of 20", 1e-6, difference(first, expected), ranks=2)
    table.at_most("losses beside a batch of 20", 1e-6, loss_difference(first, expected), ranks=2)
