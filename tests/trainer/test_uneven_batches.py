"""uneven(): every batch counts once, whoever has it and however long the others have none."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import DataParallel, TrainerError, Zero, uneven

KINDS: dict[str, Callable] = {
    "data_parallel": lambda *parts, **options: DataParallel(*parts, overlap="on", **options),
    "zero1": Zero,
    "zero2": lambda *parts, **options: Zero(*parts, stage=2, **options),
}
# Samples of each batch, by rank.
LENGTHS = {
    "of different numbers": [[3, 3, 3, 1], [3, 2], [3]],
    "none at all on a rank": [[], [2, 2, 2], [1]],
    "one rank": [[4, 4, 2]],
    "equal": [[2, 2], [2, 2]],
    "with empty batches": [[0, 2, 0], [1], [0, 0, 0, 1]],
}
Batch = tuple[Tensor, Tensor]


def batches(lengths: list[int], rank: int) -> list[Batch]:
    random = torch.Generator().manual_seed(rank)
    return [(torch.randn(n, 6, generator=random), torch.randn(n, 3, generator=random)) for n in lengths]


def model_of() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 67), nn.Tanh(), nn.Linear(67, 3))


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_those_of_one_process_with_all_batches(kind: str, lengths: list[list[int]]) -> None:
    original = model_of()

    def rank(comm: Communicator) -> tuple[list[int], dict[str, Tensor]]:
        model = copy.deepcopy(original)
        stepping = torch.optim.Adam(model.parameters(), 0.01)
        counts = []
        with KINDS[kind](model, comm, stepping, loss_reduction="sum", bucket_bytes=1000) as parallel:
            for batch, global_count in uneven(batches(lengths[comm.rank], comm.rank), comm):
                counts.append(global_count)
                parallel.global_count = global_count
                stepping.zero_grad()
                if batch is not None:
                    functional.mse_loss(model(batch[0]), batch[1], reduction="sum").backward()
                stepping.step()
        return counts, model.state_dict()

    model = copy.deepcopy(original)
    stepping = torch.optim.Adam(model.parameters(), 0.01)
    everyones = [batches(of_rank, number) for number, of_rank in enumerate(lengths)]
    expected = []
    for step in range(max(map(len, lengths))):
        having = [of_rank[step] for of_rank in everyones if step < len(of_rank)]
        inputs, targets = (torch.cat(parts) for parts in zip(*having, strict=True))
        if not len(inputs):
            continue
        expected.append(len(inputs))
        stepping.zero_grad()
        (functional.mse_loss(model(inputs), targets, reduction="sum") / len(inputs)).backward()
        stepping.step()
    for counts, got in run_threads(len(lengths), rank):
        assert counts == expected
        torch.testing.assert_close(got, model.state_dict(), rtol=1e-4, atol=1e-5)


def test_nobody_has_anything() -> None:
    assert run_threads(3, lambda comm: list(uneven([], comm))) == [[]] * 3


def test_what_counts_may_be_tokens() -> None:
    def rank(comm: Communicator) -> list[tuple[str | None, int]]:
        return list(uneven(["ab", "cde"][: 2 - comm.rank], comm, count=len))

    assert run_threads(2, rank) == [[("ab", 4), ("cde", 3)], [("ab", 4), (None, 3)]]


def test_a_slow_rank_is_waited_for_and_a_batch_is_fetched_one_step_ahead() -> None:
    def rank(comm: Communicator) -> list[tuple[int, int]]:
        fetched = 0

        def loader() -> Iterator[str]:
            nonlocal fetched
            for _ in range(3 - comm.rank):
                time.sleep(0.02 * comm.rank)
                fetched += 1
                yield "1"

        return [(fetched, total) for _, total in uneven(loader(), comm)]

    assert run_threads(2, rank) == [[(2, 2), (3, 2), (3, 1)], [(2, 2), (2, 2), (2, 1)]]


def test_a_negative_count_is_refused() -> None:
    with pytest.raises(TrainerError, match="count: expected 0 or more, got -1"):
        run_threads(1, lambda comm: list(uneven(["1"], comm, count=lambda _: -1)))
