"""Float32 masters of 16-bit parameters, whole and in shards. Gradients are small integers: all is exact."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import DataParallel, TrainerError, Zero

KINDS: dict[str, Callable] = {
    "data_parallel": DataParallel,
    "zero1": Zero,
    "zero2": lambda *parts, **options: Zero(*parts, stage=2, **options),
    "zero3": lambda *parts, **options: Zero(*parts, stage=3, **options),
    "zero1, shared": lambda *parts, **options: Zero(*parts, share_params=True, **options),
}
OPTIMIZERS: dict[str, Callable] = {
    "momentum": lambda groups: torch.optim.SGD(groups, 0.25, momentum=0.5, weight_decay=0.5),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, 0.01),
    "adam": lambda groups: torch.optim.Adam(groups, 0.001, amsgrad=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, 0.001),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, 0.001, centered=True),
}
STEPS = 4

pytestmark = pytest.mark.filterwarnings("ignore:all 2 ranks have bit-identical gradients")


class Mixed(nn.Module):
    """16-bit and float32 parameters, of which some are tied and some frozen."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.narrow = nn.Parameter(torch.linspace(-1, 1, 3 * 67).view(3, 67).to(dtype))
        self.tied = self.narrow
        self.wide = nn.Parameter(torch.linspace(-1, 1, 70))
        self.frozen = nn.Parameter(torch.ones(5, dtype=dtype), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(5, dtype=dtype))

    def forward(self, slope: Tensor) -> Tensor:
        """Its gradient is the slope, rounded to nothing, for each element."""
        return sum((p.float() * slope).sum() for p in (self.narrow, self.wide))


def groups(model: Mixed) -> list[dict]:
    return [{"params": [model.narrow, model.unused]}, {"params": [model.wide, model.frozen], "lr": 0.125}]


def slopes(rank: int) -> list[Tensor]:
    return [torch.tensor(float(1 + step + 2 * rank)) for step in range(STEPS)]


def by_hand(optimizer: str, dtype: torch.dtype, size: int) -> dict[str, Tensor]:
    """Plain torch on a float32 copy, rounded after each step."""
    model = Mixed(dtype)
    masters = copy.deepcopy(model).float()
    masters.tied = masters.narrow
    stepping = OPTIMIZERS[optimizer](groups(masters))
    for step in range(STEPS):
        stepping.zero_grad()
        masters(sum(slopes(rank)[step] for rank in range(size))).backward()
        stepping.step()
    rounded = {name: p.to(model.get_parameter(name).dtype) for name, p in masters.named_parameters()}
    return {**rounded, "tied": rounded["narrow"]}


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_are_those_of_a_float32_copy_to_the_bit(optimizer: str, kind: str, size: int) -> None:
    dtype = torch.float16 if optimizer == "adam" else torch.bfloat16

    def rank(comm: Communicator) -> dict[str, Tensor]:
        model = Mixed(dtype)
        stepping = OPTIMIZERS[optimizer](groups(model))
        with KINDS[kind](
            model, comm, stepping, loss_reduction="sum", global_count=1, master_weights=True, bucket_bytes=1
        ):
            for slope in slopes(comm.rank):
                stepping.zero_grad()
                model(slope).backward()
                stepping.step()
        return model.state_dict()

    expected = by_hand(optimizer, dtype, size)
    for got in run_threads(size, rank):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masters", [True, False])
def test_updates_too_small_for_bfloat16_add_up_in_masters_alone(masters: bool, kind: str) -> None:
    def rank(comm: Communicator) -> list[float]:
        model = nn.Linear(70, 1, bias=False, dtype=torch.bfloat16)
        nn.init.ones_(model.weight)
        stepping = torch.optim.SGD(model.parameters(), 2.0**-10)  # half a unit below 1 is 2^-9
        with KINDS[kind](model, comm, stepping, master_weights=masters):
            for _ in range(8):
                stepping.zero_grad()
                model(torch.ones(1, 70, dtype=torch.bfloat16)).sum().backward()
                stepping.step()
        return model.weight.flatten().tolist()

    expected = 1 - 8 * 2.0**-10 if masters else 1.0
    assert run_threads(2, rank) == [[expected] * 70] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_clipping_and_no_sync_work_on_the_masters_gradients(kind: str) -> None:
    def rank(comm: Communicator) -> tuple[float, float, bool]:
        model = nn.Linear(100, 1, bias=False, dtype=torch.bfloat16)
        nn.init.zeros_(model.weight)
        stepping = torch.optim.SGD(model.parameters(), 1.0)
        inputs = torch.full((1, 100), float(comm.rank), dtype=torch.bfloat16)
        options = {"loss_reduction": "sum", "global_count": 1, "master_weights": True}
        with KINDS[kind](model, comm, stepping, **options) as parallel:
            with parallel.no_sync():
                (1000 * model(inputs).sum()).backward()
            stepping.zero_grad()  # drops that
            with parallel.no_sync():
                model(inputs).sum().backward()
            model(inputs).sum().backward()
            norm = parallel.clip_grad_norm_(10.0)
            gradients = [gradient for _, gradient in parallel.gradients(model)]
            wide = (
                all(gradient.dtype == torch.float32 for gradient in gradients) and model.weight.grad is None
            )
            stepping.step()
        return norm, model.weight[0, 0].item(), wide

    # Twice 0 + 1 + 2 in each of 100 elements: a norm of 60.
    assert run_threads(3, rank) == [(60.0, pytest.approx(-1.0, rel=2.0**-8), True)] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_closing_gives_the_optimizer_the_models_parameters_back(kind: str) -> None:
    model = nn.Linear(6, 3, dtype=torch.bfloat16)
    stepping = torch.optim.Adam(model.parameters())

    def rank(comm: Communicator) -> None:
        with KINDS[kind](model, comm, stepping, master_weights=True):
            model(torch.ones(1, 6, dtype=torch.bfloat16)).sum().backward()
            stepping.step()

    run_threads(1, rank)
    assert [id(p) for p in stepping.param_groups[0]["params"]] == [id(p) for p in model.parameters()]
    assert not stepping.state and "zero_grad" not in vars(stepping)


@pytest.mark.parametrize("kind", KINDS)
def test_state_that_the_optimizer_has_is_the_masters(kind: str) -> None:
    """Momentum of a step alone in bfloat16, where it is exact, is that of the steps that follow."""

    def rank(comm: Communicator) -> float:
        model = nn.Linear(70, 1, bias=False, dtype=torch.bfloat16)
        nn.init.zeros_(model.weight)
        stepping = torch.optim.SGD(model.parameters(), 1.0, momentum=0.5)
        inputs = torch.ones(1, 70, dtype=torch.bfloat16)
        model(inputs).sum().backward()
        stepping.step()
        with KINDS[kind](model, comm, stepping, master_weights=True):
            stepping.zero_grad()
            model(inputs).sum().backward()
            stepping.step()
            momenta = [state["momentum_buffer"] for state in stepping.state.values()]
            assert all(momentum.dtype == torch.float32 for momentum in momenta)
        return model.weight[0, 0].item()

    assert run_threads(2, rank) == [-2.5] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_loaded_between_steps_are_not_lost(kind: str) -> None:
    def rank(comm: Communicator) -> list[float]:
        model = nn.Linear(70, 1, bias=False, dtype=torch.bfloat16)
        nn.init.ones_(model.weight)
        stepping = torch.optim.SGD(model.parameters(), 2.0**-10)
        inputs = torch.ones(1, 70, dtype=torch.bfloat16)
        with KINDS[kind](model, comm, stepping, master_weights=True) as parallel:
            for step in range(4):
                stepping.zero_grad()
                model(inputs).sum().backward()
                stepping.step()
                if step == 1:
                    with parallel.gathered() if isinstance(parallel, Zero) else nullcontext():
                        comm.barrier()
                        model.load_state_dict({"weight": torch.full((1, 70), 4.0)})
                        comm.barrier()
            loaded = [own for group in stepping.param_groups for own in group["params"]]
            return torch.cat([own.detach().flatten() for own in loaded]).unique().tolist()

    assert run_threads(2, rank) == [[4 - 2 * 2.0**-10]] * 2


def test_masters_need_an_optimizer() -> None:
    with pytest.raises(TrainerError, match="master_weights: the optimizer holds them, and none was given"):
        run_threads(1, lambda comm: DataParallel(nn.Linear(2, 2), comm, master_weights=True))
