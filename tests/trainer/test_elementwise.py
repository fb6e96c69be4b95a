"""Which optimizers may step on slices is found by trial, whoever wrote them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from trainer.elementwise import check_elementwise
from trainer.errors import TrainerError

ELEMENTWISE = [
    torch.optim.SGD,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.RMSprop,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adadelta,
    torch.optim.Adamax,
]


class Own(torch.optim.Optimizer):
    """A user's: `update(parameter)` is what it adds."""

    def __init__(self, parameters: object, update: object, lr: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr})
        self.update = [update]  # not callable itself, so that it is a setting

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["count"] = state.get("count", 0) + 1
                parameter.add_(self.update[0](parameter), alpha=-group["lr"])


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(3, 4))


@pytest.mark.parametrize("kind", ELEMENTWISE)
@pytest.mark.parametrize("how", [{}, {"foreach": True}, {"foreach": False}])
def test_elementwise_optimizers_pass_and_stay_as_they_were(kind: type, how: dict) -> None:
    optimizer = kind([parameter()], lr=0.0, **how)
    before = copy.deepcopy(optimizer.state_dict())
    check_elementwise(optimizer)
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(optimizer.param_groups[0]["params"][0], torch.ones(3, 4))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_fused_optimizers_pass(kind: type) -> None:
    check_elementwise(kind([parameter()], lr=0.1, fused=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.LBFGS([p]), "LBFGS cannot be sharded: .* missing 1 required"),
        (lambda p: torch.optim.Adafactor([p]), "Adafactor cannot be sharded: .* do not end as the whole"),
        (lambda p: torch.optim.Muon([p]), "Muon cannot be sharded: .* raises ValueError"),
        (lambda p: Own([p], lambda x: x.grad / x.norm()), "Own cannot be sharded"),
        (lambda p: Own([p], lambda x: x.grad.mean(0, keepdim=True).expand_as(x)), "Own cannot be sharded"),
        (lambda p: Own([p], lambda x: x.grad * x.ndim), "Own cannot be sharded"),
        (lambda p: Own([p], lambda x: x.grad / x.norm(), lr=0.0), "Own cannot be sharded"),
    ],
)
def test_others_are_refused_with_the_reason(make: object, message: str) -> None:
    with pytest.raises(TrainerError, match=message):
        check_elementwise(make(parameter()))


def test_a_users_own_elementwise_optimizer_passes_under_a_scheduler_with_state() -> None:
    own = parameter()
    optimizer = Own([own], lambda x: x.grad.sign())
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
    own.grad = torch.ones_like(own)
    optimizer.step()
    check_elementwise(optimizer)
    assert optimizer.state[own]["count"] == 1


def test_every_group_is_tried_with_its_settings() -> None:
    group = {"params": [parameter()], "lr": 0.1}
    optimizer = torch.optim.SGD([group, {**group, "params": [parameter()], "momentum": 0.9}])
    check_elementwise(optimizer)
    optimizer.param_groups[1]["momentum"] = "much"
    with pytest.raises(TrainerError, match="SGD cannot be sharded"):
        check_elementwise(optimizer)
