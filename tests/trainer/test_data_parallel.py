"""DataParallel in a loop of one's own: a step equals one process's step. Ranks are threads."""

from __future__ import annotations

import itertools
import time

import pytest
import torch
from one_process import (
    COUNT,
    SIZES,
    assert_equal_gradients,
    backward,
    batch,
    gradients_of,
    on_ranks,
    oracle_gradients,
    part,
    small_model,
    summed_loss,
)
from torch import nn
from torch.nn import functional

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import DataParallel


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", ["on", "off", "auto"])
@pytest.mark.parametrize("bucket_bytes", [1, 200, 25 << 20])
def test_gradients_are_those_of_the_whole_batch(size: int, overlap: str, bucket_bytes: int) -> None:
    def body(
        parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer, comm: Communicator
    ) -> dict:
        backward(model, comm)
        optimizer.step()
        return gradients_of(model)

    expected = oracle_gradients(small_model())
    for got in on_ranks(size, small_model, body, overlap=overlap, bucket_bytes=bucket_bytes):
        assert_equal_gradients(got, expected)


def test_ranks_without_samples_take_part() -> None:
    def body(
        parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer, comm: Communicator
    ) -> dict:
        for _ in range(2):
            optimizer.zero_grad()
            if comm.rank == 2:
                summed_loss(model, *batch()).backward()
            optimizer.step()
        return gradients_of(model)

    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (summed_loss(model, *batch()) / COUNT).backward()
        optimizer.step()
    for got in on_ranks(4, small_model, body):
        assert_equal_gradients(got, gradients_of(model))


@pytest.mark.parametrize("size", SIZES)
def test_mean_averages_the_means_of_ranks(size: int) -> None:
    def body(
        parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer, comm: Communicator
    ) -> dict:
        inputs, targets = (part(tensor, comm) for tensor in batch())
        functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        return gradients_of(model)

    model = small_model()
    for inputs, targets in zip(*(tensor.tensor_split(size) for tensor in batch()), strict=True):
        (functional.mse_loss(model(inputs), targets) / size).backward()
    for got in on_ranks(size, small_model, body, loss_reduction="mean", global_count=None):
        assert_equal_gradients(got, gradients_of(model))


def test_the_first_bucket_is_launched_before_the_last_hook_when_overlapping() -> None:

    def body(
        parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer, comm: Communicator
    ) -> tuple:
        hooks: list[float] = []
        # The first parameter's gradient comes last, and this hook runs before it is accumulated.
        model[0].weight.register_hook(lambda _: hooks.append(time.monotonic()))
        backward(model, comm)
        optimizer.step()
        return parallel.bucket_times_s, hooks[0]

    for overlap, expected in (("on", True), ("off", False)):
        for times, last_hook in on_ranks(2, small_model, body, overlap=overlap):
            assert len(times) > 1
            assert (times[0][0] < last_hook) is expected
            assert all(launched <= reduced for launched, reduced in times)
            assert [launched for launched, _ in times] == sorted(launched for launched, _ in times)


def test_models_of_different_content_are_made_equal_and_hashed() -> None:
    def body(
        parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer, comm: Communicator
    ) -> tuple:
        return parallel.initial_sha256, model.state_dict()

    results = on_ranks(4, small_model, body)
    assert len({sha256 for sha256, _ in results}) == 1
    for _, state in results:
        torch.testing.assert_close(state, small_model().state_dict(), rtol=0, atol=0)


def test_close_leaves_no_hook_behind() -> None:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def rank(comm: Communicator) -> None:
        with DataParallel(model, comm, optimizer, loss_reduction="sum", global_count=7):
            pass

    run_threads(1, rank)
    (summed_loss(model, *batch()) / COUNT).backward()
    gradients = gradients_of(model)
    optimizer.step()
    assert_equal_gradients(gradients, oracle_gradients(small_model()))
    assert_equal_gradients(gradients_of(model), gradients)


def test_codecs_keep_ranks_identical_and_near() -> None:
    def body(
        parallel: DataParallel, model: nn.Module, optimizer: torch.optim.Optimizer, comm: Communicator
    ) -> dict:
        backward(model, comm)
        optimizer.step()
        return gradients_of(model)

    expected = oracle_gradients(small_model())
    for codec, unit in (("fp16", 2.0**-11), ("bf16", 2.0**-8)):
        results = on_ranks(3, small_model, body, codec=codec)
        for got, (name, want) in itertools.product(results, expected.items()):
            assert torch.equal(got[name], results[0][name])
            # One rounding per contribution and one of the sum, relative to the sum of magnitudes.
            assert (got[name] - want).abs().max() <= 8 * unit * want.abs().max()
