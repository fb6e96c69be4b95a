"""What beginners get wrong, as they would write it: each ends in words that name it, and nothing hangs."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import pycomm
from pycomm.testing import run_threads
from tests.helpers import Outcome, run, script

pytestmark = pytest.mark.timeout(60)


def job(
    folder: Path, source: str, *words: str, ranks: int = 2, env: Mapping[str, str] | None = None
) -> Outcome:
    """Runs a program that must fail with these words (regular expressions) on standard error."""
    outcome = run(ranks, script(folder, source), limit_s=40, env=env)
    assert outcome.status not in (0, None), outcome
    for word in words:
        assert re.search(word, outcome.stderr), f"no '{word}' in\n{outcome}"
    return outcome


# ---- rank 0 alone calls a collective

ALONE = """
    import numpy as np
    import pycomm

    comm = pycomm.init()
    if comm.rank == 0:
        comm.all_reduce(np.ones(3), timeout=2)
"""


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ("", (r"Aborted: all_reduce\(f64 x 3", "world rank 1 has left: it ended or called shutdown")),
        ("    comm.barrier(timeout=2)", ("MismatchError", r"all_reduce\(f64 x 3", "barrier")),
        (
            "    import time; time.sleep(80)",
            (r"Timeout: all_reduce\(f64 x 3", "waiting for recv from rank 1"),
        ),
    ],
    ids=["and the other ends", "and both call the next", "and the other is busy"],
)
def test_rank_0_alone_calls_all_reduce(others: str, words: tuple[str, ...], tmp_path: Path) -> None:
    job(tmp_path, ALONE + others, *words)


# ---- ranks numbered by hand

INIT = "import pycomm\npycomm.init()\n"


def test_rank_0_of_2_on_both_ranks_contradicts_mpi(tmp_path: Path) -> None:
    job(
        tmp_path,
        'import os\nos.environ.update(RANK="0", WORLD_SIZE="2")\n' + INIT,
        "InvalidArgument: the environment says RANK=0, but this process is rank 1 of 2",
        "unset RANK and WORLD_SIZE",
    )


@pytest.mark.parametrize(("rank", "said"), [("0", "WORLD_SIZE=2"), ("1", "RANK=1")])
def test_processes_that_mpi_did_not_start_are_told_apart(
    rank: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        pycomm.InvalidArgument, match=rf"says {said}, but this process is rank 0 of 1.*pycomm\.launch -n N"
    ):
        pycomm.init()
    assert not pycomm.is_initialized()


# ---- a transport for other tensors

NCCL = "transport 'nccl': it moves CUDA tensors only.* there is inproc, inproc_mapped, mpi"


@pytest.mark.skipif("nccl" in pycomm.info()["transports"], reason="this build has nccl")
def test_nccl_for_host_tensors_is_refused(tmp_path: Path) -> None:
    job(tmp_path, INIT, f"InvalidArgument: {NCCL}", env={"PYCOMM_TRANSPORTS": "nccl"})
    with pytest.raises(pycomm.InvalidArgument, match=NCCL):
        run_threads(2, lambda comm: comm.barrier(), transport="nccl")
    assert "CUDA" in pycomm.info()["missing"]["nccl"]


# ---- data-parallel training

torch = pytest.importorskip("torch", reason="the trainer needs torch")
from trainer import DataParallel, TrainerError  # noqa: E402


def train(comm: pycomm.Communicator, part: Callable, between: Callable | None = None, steps: int = 3) -> None:
    """Linear regression, each rank on part(samples, comm)."""
    random = torch.Generator().manual_seed(0)
    inputs, targets = (part(torch.randn(12, width, generator=random), comm) for width in (4, 1))
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with DataParallel(model, comm, optimizer) as parallel:
        for step in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()
            if between is not None:
                between(parallel, model, step, comm)


def own(samples: torch.Tensor, comm: pycomm.Communicator) -> torch.Tensor:
    return samples.tensor_split(comm.size)[comm.rank]


def same(samples: torch.Tensor, comm: pycomm.Communicator) -> torch.Tensor:
    return samples


def test_training_all_ranks_on_the_same_samples_is_noticed_once() -> None:
    with pytest.warns(
        UserWarning, match="all 3 ranks have bit-identical gradients in the first step"
    ) as seen:
        run_threads(3, train, same)
    assert len(seen) == 1 and "tensor_split" in str(seen[0].message)


@pytest.mark.parametrize(
    ("ranks", "part"),
    [(3, own), (1, same), (2, lambda samples, comm: samples if comm.rank else samples + 1e-6)],
    ids=["own samples", "one rank", "all but equal samples"],
)
def test_other_samples_or_no_other_rank_say_nothing(ranks: int, part: Callable) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_threads(ranks, train, part)


def test_gradients_that_are_zero_everywhere_say_nothing() -> None:
    def rank(comm: pycomm.Communicator) -> None:
        model = torch.nn.Linear(4, 1)
        with DataParallel(model, comm) as parallel:
            (0 * model(torch.ones(2, 4))).sum().backward()
            parallel.synchronize()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_threads(2, rank)


def change(model: torch.nn.Module) -> None:
    with torch.no_grad():
        model.weight[0, 0] += 1e-3


def test_parameters_changed_on_one_rank_are_an_error_where_asked() -> None:
    def between(parallel: DataParallel, model: torch.nn.Module, step: int, comm: pycomm.Communicator) -> None:
        parallel.check_parameters()
        if step == 1 and comm.rank == 1:
            change(model)

    with pytest.raises(TrainerError, match=r"the model's parameters differ from rank 0's on rank 1 \(of 3\)"):
        run_threads(3, train, own, between)


def test_parameters_changed_on_one_rank_are_an_error_at_the_end() -> None:
    def between(parallel: DataParallel, model: torch.nn.Module, step: int, comm: pycomm.Communicator) -> None:
        if step == 2 and comm.rank == 2:
            change(model)

    with pytest.raises(TrainerError, match=r"the model's parameters differ from rank 0's on rank 2 \(of 3\)"):
        run_threads(3, train, own, between)


def test_initial_parameters_of_each_rank_are_replaced_by_those_of_rank_0() -> None:
    def rank(comm: pycomm.Communicator) -> np.ndarray:
        model = torch.nn.Linear(4, 1)
        torch.nn.init.constant_(model.weight, comm.rank)
        with DataParallel(model, comm):
            return model.weight.detach().numpy()

    assert all((weight == 0).all() for weight in run_threads(3, rank))


def test_an_exception_on_one_rank_is_not_hidden_by_the_comparison() -> None:
    def between(parallel: DataParallel, model: torch.nn.Module, step: int, comm: pycomm.Communicator) -> None:
        if comm.rank == 1:
            raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        run_threads(2, train, own, between)
