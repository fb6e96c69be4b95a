"""--recompute: the same bits with less memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pycomm import Communicator
from pycomm.testing import run_threads
from trainer import MODELS, DataParallel, FitConfig, TrainerError, Zero, fit
from trainer.recomputation import blocks_of, recompute_blocks
from trainer.rows import read_rows


class Deep(nn.Module):
    """Blocks with dropout, in a ModuleList, and something around them."""

    def __init__(self, inputs: int = 1, outputs: int = 1, layers: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, 16)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Dropout(0.3)) for _ in range(layers)
        )
        self.last = nn.Linear(16, outputs)
        for parameter in self.parameters():
            parameter.data = torch.linspace(-1, 1, parameter.numel()).view(parameter.shape) / 4

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.last(x)


MODELS.register("test_deep")(Deep)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(3)
    model(torch.linspace(-1, 1, 10).view(10, 1)).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_gradients_have_the_same_bits_with_dropout() -> None:
    model = Deep()
    again = copy.deepcopy(model)
    assert recompute_blocks(again) == 3
    assert list(again.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(gradients(again), gradients(model), rtol=0, atol=0)


def test_blocks_keep_their_inputs_alone() -> None:
    """What autograd saves, counted by its own hook."""

    def saved(model: nn.Module) -> int:
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.ones(1000, 1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(x).square().sum()
        assert loss.requires_grad
        return sum(storages.values())

    plain = saved(Deep(layers=8))
    model = Deep(layers=8)
    recompute_blocks(model)
    assert saved(model) < plain / 2


def test_a_copy_recomputes_its_own_blocks() -> None:
    model = Deep()
    recompute_blocks(model)
    again = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(gradients(again), gradients(Deep()), rtol=0, atol=0)


def test_blocks_are_those_of_the_outermost_lists() -> None:
    assert [name for name, _ in blocks_of(Deep())] == ["blocks.0", "blocks.1", "blocks.2"]
    assert [name for name, _ in blocks_of(nn.Sequential(nn.Sequential(nn.Linear(1, 1)), nn.Tanh()))] == [
        "0",
        "1",
    ]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "recompute: the model has no blocks: .* got Linear"),
        (
            nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
            "recompute: 1 has a BatchNorm, which would count",
        ),
    ],
)
def test_models_it_is_not_for_are_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        recompute_blocks(model)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_loop_of_ones_own_steps_as_without(stage: int) -> None:
    def rank(comm: Communicator, recompute: bool) -> dict[str, Tensor]:
        model = Deep()
        model.eval()  # no dropout: ranks as threads draw from one generator
        if recompute:
            recompute_blocks(model)
        stepping = torch.optim.Adam(model.parameters(), 0.01)
        options: dict[str, Any] = {"loss_reduction": "sum", "global_count": 9, "bucket_bytes": 500}
        kind = DataParallel(model, comm, stepping, overlap="on", **options) if stage == 0 else None
        with kind or Zero(model, comm, stepping, stage=stage, **options) as parallel:
            for step in range(3):
                stepping.zero_grad()
                x = torch.linspace(-1, step + 1, 3).view(3, 1) + comm.rank
                with parallel.no_sync():
                    model(x).sum().backward()
                model(-x).square().sum().backward()
                stepping.step()
        return model.state_dict()

    expected = run_threads(3, lambda comm: rank(comm, False))
    for got in run_threads(3, lambda comm: rank(comm, True)):
        torch.testing.assert_close(got, expected[0], rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_has_the_same_bits(precision: str, tmp_path: Path) -> None:
    """In one process, with dropout, which ranks as threads would draw from one generator."""
    found = []
    for recompute in (False, True):
        out = tmp_path / str(recompute)
        config = FitConfig(
            data="linear", model="test_deep", out=out, steps=4, global_batch=10, threads=1, accumulate=2,
            recompute=recompute, precision=precision, strategy="zero1",
        )  # fmt: skip
        run_threads(1, lambda comm, config=config: fit(config, comm))
        losses = [row["loss"] for row in read_rows(out / "metrics.jsonl")]
        found.append((losses, load_file(out / "model.safetensors")))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=0)
