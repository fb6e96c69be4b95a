"""The order of gathers: a rank gets what it needs, whatever the others need, and takes part in the rest."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer.gathering import BACKWARD, DONE, FORWARD, WHOLE, Block, Gathering

COUNTS = [5, 130, 0, 64, 300]


def blocks_of(comm: Communicator) -> tuple[list[Block], list[nn.Parameter]]:
    """Block i has one parameter, filled with i + 1."""
    blocks, parameters = [], []
    for index, count in enumerate(COUNTS):
        block = Block(comm, index, str(index))
        parameter = nn.Parameter(torch.full((count,), index + 1.0))
        part = -(-count // (64 * comm.size)) * 64
        block.add(comm.size * part, slice(comm.rank * part, (comm.rank + 1) * part), [(parameter, 0)])
        blocks.append(block)
        parameters.append(parameter)
    return blocks, parameters


def use(gathering: Gathering, blocks: list[Block], parameters: list[nn.Parameter], index: int) -> None:
    gathering.need(blocks[index])
    assert bool((parameters[index] == index + 1).all())
    gathering.free(blocks[index])
    assert bool(parameters[index].isnan().all())


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ranks_that_agree_in_nothing_end_together(size: int) -> None:
    """Passes of random kinds over random blocks, other ones and more or fewer of them on each rank."""

    def rank(comm: Communicator) -> None:
        blocks, parameters = blocks_of(comm)
        gathering = Gathering(comm, blocks)
        draw = random.Random(comm.rank)
        for _ in range(5):
            for _ in range(draw.randrange(4)):
                gathering.begin(draw.choice([FORWARD, BACKWARD]))
                for _ in range(draw.randrange(8)):
                    use(gathering, blocks, parameters, draw.randrange(len(blocks)))
            gathering.begin(DONE)
        assert not any(block.held for block in blocks)

    run_threads(size, rank)


def test_a_pass_is_one_agreement_and_its_gathers_once_the_order_is_known() -> None:
    """Also where one rank uses nothing."""

    def rank(comm: Communicator) -> list[list[int]]:
        blocks, parameters = blocks_of(comm)
        gathering = Gathering(comm, blocks)
        passes: list[list[int]] = []
        begin = gathering.begin

        def counting(kind: int) -> None:
            begin(kind)
            passes.append(list(gathering._sequence))

        gathering.begin = counting  # type: ignore[method-assign]
        for _ in range(3):
            if comm.rank != 1:
                gathering.begin(FORWARD)
                for index in (4, 1, 3):
                    use(gathering, blocks, parameters, index)
            gathering.begin(DONE)
        return passes

    first, idle, _ = run_threads(3, rank)
    # By default the order of registration, in which 1 and 3 have passed when they are needed.
    assert first == [[0, 1, 2, 3, 4], [1], [3], []] + [[4, 1, 3], []] * 2
    assert idle == [[]] * 3


def test_the_next_block_is_on_its_way_while_one_is_used_and_no_more() -> None:
    def rank(comm: Communicator) -> list[int]:
        blocks, parameters = blocks_of(comm)
        gathering = Gathering(comm, blocks)
        gathering.begin(FORWARD)
        there = []
        for index in range(len(blocks)):
            use(gathering, blocks, parameters, index)
            there.append(len(gathering._resident))
        return there

    assert run_threads(2, rank) == [[1, 1, 1, 1, 0]] * 2


def test_the_height_is_remembered() -> None:
    def rank(comm: Communicator) -> tuple[int, int]:
        blocks, parameters = blocks_of(comm)
        gathering = Gathering(comm, blocks)
        gathering.begin(FORWARD)
        for index in range(len(blocks)):
            use(gathering, blocks, parameters, index)
        pairs = gathering.most_nbytes
        gathering.begin(WHOLE)
        for block in blocks:
            gathering.need(block)
        return pairs, gathering.most_nbytes

    assert run_threads(1, rank) == [(4 * (64 + 320), 4 * (64 + 192 + 64 + 320))]


def test_a_gather_whose_wait_was_interrupted_is_not_taken_for_the_next_one() -> None:
    def rank(comm: Communicator) -> list[float]:
        blocks, parameters = blocks_of(comm)
        gathering = Gathering(comm, blocks)
        wait = blocks[3].wait

        def interrupted() -> None:
            blocks[3].wait = wait  # type: ignore[method-assign]
            raise KeyboardInterrupt

        gathering.begin(FORWARD)
        if comm.rank == 0:
            blocks[3].wait = interrupted  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                gathering.need(blocks[3])
        gathering.begin(DONE)
        for shard in blocks[3].shards:
            shard.fill_(9)
        gathering.begin(FORWARD)
        gathering.need(blocks[3])
        values: list[float] = parameters[3].unique().tolist()
        gathering.free(blocks[3])
        assert not blocks[3].coming and parameters[3].isnan().all()
        gathering.begin(DONE)
        return values

    assert run_threads(2, rank) == [[9.0]] * 2


def test_an_answer_whose_wait_was_interrupted_is_taken_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def rank(comm: Communicator) -> None:
        blocks, parameters = blocks_of(comm)
        gathering = Gathering(comm, blocks)
        if comm.rank == 0:
            words = gathering._words

            def interrupted(kind: int) -> object:
                gathering._words = words  # type: ignore[method-assign]
                word = torch.full((1 + 4 * len(blocks),), -1, dtype=torch.int32)
                word[0] = kind
                gathering._asked = kind, comm.all_gather_async(word)
                raise KeyboardInterrupt

            gathering._words = interrupted  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                gathering.begin(FORWARD)
            gathering.begin(WHOLE)
            for index in range(len(blocks)):
                use(gathering, blocks, parameters, index)
        else:
            gathering.begin(FORWARD)
            use(gathering, blocks, parameters, 3)
        gathering.begin(DONE)

    run_threads(3, rank)
