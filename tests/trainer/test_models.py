from __future__ import annotations

import math

import pytest
import torch

from trainer.data import cross_entropy
from trainer.errors import TrainerError
from trainer.models import MODELS


def parameter_count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_bench_models_have_their_sizes() -> None:
    assert parameter_count(MODELS.build("gpt")) == pytest.approx(10.8e6, rel=0.01)
    wide = MODELS.build("mlp", hidden=[4096, 4096])
    assert parameter_count(wide) == 784 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 10 + 10


def test_mlp_is_784_128_10_unless_told_otherwise() -> None:
    assert parameter_count(MODELS.build("mlp")) == 784 * 128 + 128 + 128 * 10 + 10
    assert parameter_count(MODELS.build("mlp", inputs=3, outputs=2, hidden=[])) == 3 * 2 + 2
    assert MODELS.build("mlp", inputs=4, hidden=5)(torch.zeros(7, 2, 2)).shape == (7, 10)


@pytest.mark.parametrize("hidden", [[0], ["wide"], [3, -1]])
def test_mlp_refuses_sizes_that_are_none(hidden: list) -> None:
    with pytest.raises(TrainerError, match="model 'mlp': expected at least two sizes"):
        MODELS.build("mlp", hidden=hidden)


def small_gpt() -> torch.nn.Module:
    torch.manual_seed(0)
    return MODELS.build("gpt", vocabulary=11, context=8, width=16, heads=2, layers=2)


def test_gpt_does_not_look_ahead() -> None:
    model = small_gpt()
    tokens = torch.randint(11, (2, 8))
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_gpt_starts_at_the_loss_of_a_guess_and_learns() -> None:
    model = small_gpt()
    tokens = torch.randint(11, (4, 8))
    targets = tokens.roll(-1, dims=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = cross_entropy(model(tokens), targets)
        (loss / targets.numel()).backward()
        optimizer.step()
        losses.append(loss.item() / targets.numel())
    assert losses[0] == pytest.approx(math.log(11), rel=0.05)
    assert losses[-1] < 0.5 * losses[0]


def test_gpt_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(TrainerError, match="9 tokens are more than its context of 8"):
        small_gpt()(torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(TrainerError, match="width 16 is not a multiple of heads 3"):
        MODELS.build("gpt", width=16, heads=3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_gpt_takes_tokens_of_any_integer_dtype(dtype: torch.dtype) -> None:
    model = small_gpt()
    tokens = torch.randint(11, (2, 8))
    assert torch.equal(model(tokens.to(dtype)), model(tokens))


@pytest.mark.parametrize(
    ("inputs", "parameters"), [((1, 28, 28), 20_490), ((1, 8, 8), 6_090), ((3, 4, 7), 5_418)]
)
def test_the_cnn_fits_the_images(inputs: tuple[int, int, int], parameters: int) -> None:
    model = MODELS.build("cnn", inputs=inputs)
    assert parameter_count(model) == parameters
    assert model(torch.zeros(5, *inputs)).shape == (5, 10)


@pytest.mark.parametrize("inputs", [1, (784,), (1, 3, 28)])
def test_the_cnn_refuses_what_is_no_image(inputs: object) -> None:
    with pytest.raises(TrainerError, match="model 'cnn': expected images"):
        MODELS.build("cnn", inputs=inputs)
    with pytest.raises(TrainerError, match="expected a width of 1 or more, got 0"):
        MODELS.build("cnn", width=0)


def test_models_of_vectors_take_images_as_well() -> None:
    for name in ("linear", "mlp"):
        model = MODELS.build(name, inputs=(1, 4, 5), outputs=3)
        assert model(torch.zeros(7, 1, 4, 5)).shape == (7, 3)
        same = MODELS.build(name, inputs=20, outputs=3)
        assert [p.shape for p in same.parameters()] == [p.shape for p in model.parameters()]


@pytest.mark.parametrize(
    ("name", "options", "x"),
    [
        ("mlp", {"inputs": 6, "hidden": [40, 40]}, torch.ones(5, 6)),
        ("cnn", {"inputs": (1, 8, 8)}, torch.ones(5, 1, 8, 8)),
        (
            "gpt",
            {"vocabulary": 11, "context": 8, "width": 16, "heads": 2, "layers": 2},
            torch.ones(5, 8).long(),
        ),
    ],
)
def test_dropout_is_of_training_and_changes_no_name(name: str, options: dict, x: torch.Tensor) -> None:
    def model(dropout: float) -> torch.nn.Module:
        torch.manual_seed(0)
        return MODELS.build(name, **options, dropout=dropout)

    plain, dropping = model(0.0), model(0.5)
    assert plain.state_dict().keys() == dropping.state_dict().keys()
    assert torch.equal(plain(x), plain(x))
    assert not torch.equal(dropping(x), dropping(x))
    assert torch.equal(dropping.eval()(x), plain(x))
    with pytest.raises(TrainerError, match="dropout"):
        model(1.5)
