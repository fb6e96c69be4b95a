"""Zero, stage 3, in loops and models of every kind: it does what stage 2 does, to the bit. Ranks are
threads.

Stage 2 is compared with one process elsewhere (test_zero.py, with stage 3 beside it).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from one_process import COUNT, Branches, batch, part, summed_loss
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import TrainerError, Zero
from trainer.weights import save_weights

State = dict[str, Tensor]
Body = Callable[[Zero, nn.Module, torch.optim.Optimizer, Communicator], object]


class Deep(nn.Module):
    """An embedding tied to the head, blocks that are called as `calls` says, and a norm."""

    def __init__(self, calls: Callable[[nn.Module, Tensor], Tensor] = lambda block, x: block(x)) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.calls = calls
        self.token = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 13), nn.Tanh(), nn.Linear(13, 8)) for _ in range(4)
        )
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens)
        for block in self.blocks:
            x = x + self.calls(block, x)
        return self.head(self.norm(x))


def tokens(seed: int, comm: Communicator) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return part(torch.randint(11, (7, 5), generator=random), comm)


def deep_loss(model: nn.Module, seed: int, comm: Communicator) -> Tensor:
    mine = tokens(seed, comm)
    return nn.functional.cross_entropy(model(mine).flatten(0, 1), mine.flatten(), reduction="sum")


def adam(model: nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim == 1], "lr": 0.02},
        {"params": [p for p in trained if p.ndim != 1], "weight_decay": 0.1},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], 0.01)


def run(size: int, stage: int, make: Callable[[], nn.Module], body: Body, **options: object) -> list:
    """What `body` returns on each rank, and the parameters afterwards."""

    def rank(comm: Communicator) -> tuple[object, State]:
        model = copy.deepcopy(original)
        stepping = adam(model)
        settings = {"loss_reduction": "sum", "global_count": COUNT, "stage": stage, **options}
        with Zero(model, comm, stepping, **settings) as parallel:
            result = body(parallel, model, stepping, comm)
        return result, model.state_dict()

    original = make()
    return run_threads(size, rank)


def assert_as_stage_2(size: int, make: Callable[[], nn.Module], body: Body, **options: object) -> None:
    for got, expected in zip(run(size, 3, make, body, **options), run(size, 2, make, body), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def steps(_: Zero, model: nn.Module, stepping: torch.optim.Optimizer, comm: Communicator) -> None:
    for seed in range(4):
        stepping.zero_grad()
        if len(tokens(seed, comm)):
            deep_loss(model, seed, comm).backward()
        stepping.step()


def checkpointed(reentrant: bool) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda block, x: checkpoint(block, x, use_reentrant=reentrant)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_bits_are_those_of_stage_2(size: int) -> None:
    """Eight ranks have seven samples: one makes no forward, and takes part in every gather."""
    assert_as_stage_2(size, Deep, steps)


@pytest.mark.parametrize("size", [1, 3])
def test_clipping_is_that_of_stage_2_up_to_the_order_of_sums(size: int) -> None:
    def clipped(
        parallel: Zero, model: nn.Module, stepping: torch.optim.Optimizer, comm: Communicator
    ) -> float:
        deep_loss(model, 0, comm).backward()
        norm = parallel.clip_grad_norm_(0.5)
        stepping.step()
        return norm

    torch.testing.assert_close(run(size, 3, Deep, clipped), run(size, 2, Deep, clipped))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("pool", [1, 100])
def test_blocks_that_are_computed_again_in_backward(reentrant: bool, pool: int) -> None:
    assert_as_stage_2(3, lambda: Deep(checkpointed(reentrant)), steps, pool=pool)


def test_blocks_that_are_computed_again_to_their_end() -> None:
    """Otherwise torch stops where the last saved tensor is there, before the block returns."""
    with set_checkpoint_early_stop(False):
        assert_as_stage_2(2, lambda: Deep(checkpointed(False)), steps)


@dataclass
class Result:
    values: dict[str, list[Tensor]]
    size: int


class Wrapping(nn.Linear):
    def forward(self, x: Tensor) -> Result:
        return Result({"y": [super().forward(x)]}, len(x))


class Opaque(nn.Linear):
    def forward(self, x: Tensor) -> set:
        return {super().forward(x)}


def test_tensors_are_found_in_what_blocks_return() -> None:
    def make(kind: type[nn.Module], take: Callable) -> Callable[[], nn.Module]:
        def deep() -> nn.Module:
            model = Deep(lambda block, x: take(block(x)))
            model.blocks = nn.ModuleList([kind(8, 8), kind(8, 8)])
            return model

        return deep

    assert_as_stage_2(2, make(Wrapping, lambda result: result.values["y"][0]), steps)
    with pytest.raises(TrainerError, match=r"block blocks.0 .* returns no tensor that needs a gradient"):
        run(1, 3, make(Opaque, lambda result: result.pop()), steps)


class Mixed(nn.Module):
    """Two dtypes, and a parameter that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(8, 8, dtype=torch.bfloat16), nn.Linear(8, 8, dtype=torch.float64)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.high(self.low(x.bfloat16()).double()).float()


def test_a_block_of_several_dtypes() -> None:
    def make() -> nn.Module:
        model = Deep()
        model.blocks = nn.ModuleList([Mixed(), Mixed()])
        return model

    # A divisor that is a power of two: others round bfloat16 as its owner does, who is another in stage 2.
    got, expected = (run(2, stage, make, steps, global_count=8) for stage in (3, 2))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


class Adapted(nn.Module):
    """A frozen matrix, and a trained one of low rank beside it whose gradient is there first."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.frozen(x) + self.up(self.down(x)))


def adapted(calls: Callable[[nn.Module, Tensor], Tensor] = lambda block, x: block(x)) -> nn.Module:
    model = Deep(calls)
    model.blocks = nn.ModuleList([Adapted(), nn.Linear(8, 8).requires_grad_(False), Adapted(), Adapted()])
    model.norm.requires_grad_(False)
    return model


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_frozen_parameters_are_there_until_the_inputs_have_their_gradients(
    reentrant: bool | None, size: int
) -> None:
    def held(*arguments: object) -> int:
        steps(*arguments)
        return arguments[0].memory().parameters

    make = adapted if reentrant is None else lambda: adapted(checkpointed(reentrant))
    assert_as_stage_2(size, make, steps)
    assert run(size, 3, make, held)[0][0] == run(size, 3, adapted, held)[0][0]


def test_frozen_parameters_are_in_shards_too() -> None:
    def held(parallel: Zero, *_: object) -> int:
        return parallel.memory().parameters

    counts = run(
        4, 3, lambda: nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64).requires_grad_(False)), held
    )
    assert [got for got, _ in counts] == [2 * 4 * (4096 + 256) // 4] * 4  # 64 elements of bias, 64 to each


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_that_take_different_branches_wait_for_each_other_and_for_nothing_else(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In number and in order, and from step to step."""
    monkeypatch.setattr("trainer.zero.PATIENCE_S", 0.02)
    routes = [[(0, 1), (2,), ()], [(2, 1, 0), (0, 1, 2), (1,)], [(0, 2), (1,), (1, 0)], [(2,), (2,), (2,)]]

    def branching(_: Zero, model: nn.Module, stepping: torch.optim.Optimizer, comm: Communicator) -> None:
        for seed, taken in enumerate(routes):
            stepping.zero_grad()
            if taken[comm.rank]:
                model(part(batch(seed)[0], comm), taken[comm.rank]).square().sum().backward()
            stepping.step()

    def make() -> nn.Module:
        torch.manual_seed(2)
        return Branches()

    assert_as_stage_2(size, make, branching, pool=1)


def test_an_order_that_changes_with_the_step_is_followed() -> None:
    def turning(
        parallel: Zero, model: nn.Module, stepping: torch.optim.Optimizer, comm: Communicator
    ) -> None:
        blocks = list(model.blocks._modules.values())
        for seed in range(4):
            model.blocks._modules = {str(i): block for i, block in enumerate(blocks[seed:] + blocks[:seed])}
            stepping.zero_grad()
            deep_loss(model, seed, comm).backward()
            stepping.step()
        model.blocks._modules = {str(i): block for i, block in enumerate(blocks)}

    assert_as_stage_2(3, Deep, turning)


def test_several_forwards_of_a_step_in_any_nesting() -> None:
    def nested(parallel: Zero, model: nn.Module, stepping: torch.optim.Optimizer, comm: Communicator) -> None:
        for seed in range(3):
            stepping.zero_grad()
            with parallel.no_sync():
                one, other = (deep_loss(model, seed + more, comm) for more in (0, 10))
                (one + other).backward()
                with torch.no_grad():
                    model(tokens(seed, comm))
            last = deep_loss(model, seed + 20, comm)
            with torch.no_grad():
                model(tokens(seed, comm))
            last.backward()
            stepping.step()

    assert_as_stage_2(2, Deep, nested)


def test_evaluation_on_ranks_with_different_numbers_of_forwards() -> None:
    def evaluating(
        parallel: Zero, model: nn.Module, stepping: torch.optim.Optimizer, comm: Communicator
    ) -> list:
        losses = []
        for seed in range(3):
            stepping.zero_grad()
            deep_loss(model, seed, comm).backward()
            stepping.step()
            model.eval()
            with torch.no_grad():
                total = sum((model(tokens(s, comm)).sum() for s in range(comm.rank)), torch.zeros(()))
            parallel.after_forward()
            losses.append(comm.all_reduce(total))
            model.train()
        return losses

    assert_as_stage_2(3, Deep, evaluating)


def test_a_part_of_the_model_may_be_called_alone() -> None:
    def parts(_: Zero, model: nn.Module, stepping: torch.optim.Optimizer, comm: Communicator) -> None:
        for seed in range(3):
            stepping.zero_grad()
            x = part(torch.randn(7, 8, generator=torch.Generator().manual_seed(seed)), comm)
            model.blocks[2](model.blocks[1](x)).square().sum().backward()
            stepping.step()

    assert_as_stage_2(3, Deep, parts)


def test_one_rank_that_is_late_in_backward_changes_no_bit() -> None:
    def late(parallel: Zero, model: nn.Module, stepping: torch.optim.Optimizer, comm: Communicator) -> None:
        if comm.rank == 1:
            model.blocks[2][0].weight.register_hook(lambda _: time.sleep(0.2))
        steps(parallel, model, stepping, comm)

    torch.testing.assert_close(run(3, 3, Deep, late), run(3, 3, Deep, steps), rtol=0, atol=0)


# ---- parameters between steps


def test_between_uses_parameters_are_nowhere_and_in_gathered_they_are_whole() -> None:
    def look(parallel: Zero, model: nn.Module, stepping: torch.optim.Optimizer, comm: Communicator) -> State:
        steps(parallel, model, stepping, comm)
        assert all(bool(parameter.isnan().all()) for parameter in model.parameters())
        assert [parameter.shape for parameter in model.parameters()] == [p.shape for p in Deep().parameters()]
        with pytest.raises(TrainerError, match=r"with parallel.gathered\(\)"):
            model.state_dict()
        with parallel.gathered():
            whole = copy.deepcopy(model.state_dict())
            if comm.rank == 0:  # nobody else has to
                model(tokens(0, comm))
            with pytest.raises(TrainerError, match=r"step\(\) within gathered"):
                stepping.step()
            comm.barrier()
        parallel.check_parameters()
        return whole

    for whole, after in run(3, 3, Deep, look):
        torch.testing.assert_close(whole, after, rtol=0, atol=0)


def test_what_is_changed_in_gathered_stays() -> None:
    def change(
        parallel: Zero, model: nn.Module, stepping: torch.optim.Optimizer, comm: Communicator
    ) -> Tensor:
        with parallel.gathered(), torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.5)
        return model(tokens(0, comm)).sum().detach()

    for _, after in run(3, 3, adapted, change):
        assert all(bool((value == 0.5).all()) for value in after.values())


def test_weights_are_written_block_by_block_and_where_that_fails_no_other_rank_waits(tmp_path: Path) -> None:
    def save(parallel: Zero, model: nn.Module, stepping: torch.optim.Optimizer, comm: Communicator) -> int:
        steps(parallel, model, stepping, comm)
        before = parallel.memory().parameters
        if comm.rank == 1:
            with pytest.raises(TrainerError, match="cannot write"):
                save_weights(tmp_path / "file" / "w", model, 1, whole=parallel.whole)
        else:
            save_weights(tmp_path / "file" / "w", model, 1, whole=parallel.whole, write=False)
        save_weights(tmp_path / "w", model, 4, whole=parallel.whole, write=comm.rank == 1)
        return parallel.memory().parameters - before

    (tmp_path / "file").touch()
    for more, state in run(3, 3, Deep, save):
        assert more == 0
        torch.testing.assert_close(load_file(tmp_path / "w"), dict(state), rtol=0, atol=0)


def test_an_exception_in_a_forward_of_all_ranks_leaves_a_model_that_goes_on() -> None:
    def failing(
        parallel: Zero, model: nn.Module, stepping: torch.optim.Optimizer, comm: Communicator
    ) -> None:
        broken = model.blocks[2].register_forward_pre_hook(lambda *_: {}["missing"])
        with pytest.raises(KeyError):
            model(tokens(0, comm))
        broken.remove()
        steps(parallel, model, stepping, comm)

    torch.testing.assert_close(run(3, 3, Deep, failing), run(3, 3, Deep, steps), rtol=0, atol=0)


def test_a_graph_from_before_a_blocks_gradients_were_complete_is_an_error() -> None:
    """It would read memory that is gone."""

    def rank(comm: Communicator) -> None:
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
        stepping = torch.optim.SGD(model.parameters(), 0.1)
        with Zero(model, comm, stepping, stage=3) as parallel:
            loss = model(batch()[0]).square().sum()
            with parallel.no_sync():
                loss.backward(retain_graph=True)
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    loss.backward()

    run_threads(1, rank)


class Around(nn.Module):
    """Uses a block's weight without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 3)])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.blocks[0].weight.t()


def test_a_block_that_is_used_without_being_called_is_an_error_with_its_name() -> None:
    def rank(comm: Communicator) -> None:
        model = Around()
        parallel = Zero(model, comm, torch.optim.SGD(model.parameters(), 0.1), stage=3)
        with pytest.raises(TrainerError, match=r"blocks.0.weight .* without its module being called"):
            model(batch()[0]).sum().backward()
        parallel._store.finish()

    run_threads(2, rank)


@pytest.mark.parametrize(
    "chosen",
    [["Linear"], ["Sequential", "LayerNorm"], lambda module: isinstance(module, nn.LayerNorm | nn.Tanh)],
)
def test_blocks_may_be_chosen(chosen: object) -> None:
    assert_as_stage_2(2, Deep, steps, blocks=chosen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": 2, "blocks": ["Linear"]}, "blocks belong to stage 3, got stage 2"),
        ({"stage": 3, "blocks": "Linear"}, "blocks: expected a list, got 'Linear'"),
        ({"stage": 3, "share_params": True}, "stage 3 has no copy of the parameters to share"),
        ({"stage": 3, "overlap": "off"}, "stage 3 reduces from within backward"),
        ({"stage": 3, "blocks": ["Conv2d"]}, r"expected classes of the model's modules, got \['Conv2d'\]"),
    ],
)
def test_wrong_arguments_are_refused(options: dict, message: str) -> None:
    model = Deep()
    with pytest.raises(TrainerError, match=message):
        run_threads(1, lambda comm: Zero(model, comm, adam(model), **options))


def test_memory_is_the_parts_and_the_blocks_that_are_there_at_a_time() -> None:
    """Six equal blocks and a root: of these, two and the root."""

    def rank(comm: Communicator) -> tuple[int, int, int]:
        model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(6)))
        stepping = torch.optim.Adam(model.parameters())
        with Zero(model, comm, stepping, stage=3) as parallel:
            for _ in range(2):
                summed_loss(model, torch.full((2, 64), comm.rank + 1.0), torch.ones(2, 64)).backward()
                stepping.step()
                stepping.zero_grad()
            held = parallel.memory()
        return held.parameters, held.gradients, held.optimizer

    block = 4 * 64 * 64
    expected = (6 * block // 4 + 2 * block, 6 * block // 4 + 2 * block, 2 * 6 * block // 4 + 6 * 4)
    assert run_threads(4, rank) == [expected] * 4
