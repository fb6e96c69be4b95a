from __future__ import annotations

from typing import Any

import pytest
import torch

from pycomm.testing import run_threads
from trainer.data import REGRESSION, Dataset
from trainer.errors import CollectiveError
from trainer.reading.statistics import moments, standardised


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("each", [False, True])
def test_moments_of_all_ranks_are_those_of_the_whole_also_far_from_zero(size: int, each: bool) -> None:
    random = torch.Generator().manual_seed(0)
    x = 1e8 + torch.randn(23, 4, generator=random, dtype=torch.float64)

    def rank(comm: Any) -> Any:
        return moments(x.tensor_split(size)[comm.rank], comm, each=each)

    dims = (0,) if each else (0, 1)
    for mean, deviation in run_threads(size, rank):
        torch.testing.assert_close(mean, x.mean(dims).expand_as(mean), rtol=1e-15, atol=1e-7)
        expected = x.std(dims, correction=0).expand_as(deviation)
        torch.testing.assert_close(deviation, expected, rtol=1e-7, atol=0)


def test_a_place_whose_values_are_all_equal_becomes_0() -> None:
    x = torch.tensor([[1.0, 7.0], [3.0, 7.0]])
    data = Dataset((x, x), (x + 2, x), REGRESSION, standardise="each")
    done = run_threads(1, lambda comm: standardised(data, comm))[0]
    assert done.train.pair[0].tolist() == [[-1, 0], [1, 0]]
    assert done.test.pair[0].tolist() == [[1, 2], [3, 2]]
    assert torch.equal(done.train.pair[1], x)


def test_inputs_that_are_no_numbers_with_a_point_are_refused() -> None:
    x = torch.ones(3, 2, dtype=torch.int64)
    data = Dataset((x, x), (x, x), REGRESSION, standardise="all")
    with pytest.raises(CollectiveError, match="train data: standardise needs inputs in memory, of floating"):
        run_threads(2, lambda comm: standardised(data, comm))
