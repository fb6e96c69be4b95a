"""Float32 copies of 16-bit parameters, which the optimizer steps on in their place.

An update that is less than half a unit in the last place of a 16-bit weight would be lost; in float32 such
updates add up, and the weight is the copy rounded (Micikevicius et al., "Mixed Precision Training", ICLR
2018, section 3.1). Here for optimizers of whole parameters; of shards, trainer/shards.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from trainer.errors import TrainerError

KEY = "master"  # beside the optimizer's own, in checkpoints


class Copies:
    """Masters with the 16-bit tensors that they are copies of: parameters, or views of a part of one."""

    def __init__(self) -> None:
        self._copies: list[tuple[nn.Parameter, Tensor, nn.Parameter]] = []  # master, rounded, parameter
        self._versions: list[int] = []

    def of(self, rounded: nn.Parameter, parameter: nn.Parameter) -> nn.Parameter:
        """The master of a 16-bit tensor, which is (part of) `parameter`; another dtype is its own master."""
        if rounded.dtype not in (torch.float16, torch.bfloat16):
            return rounded
        master = nn.Parameter(rounded.detach().float())
        self._copies.append((master, rounded, parameter))
        self._versions.append(parameter._version)
        return master

    @property
    def nbytes(self) -> int:
        return sum(master.nbytes for master, _, _ in self._copies)

    @torch.no_grad()
    def publish(self) -> None:
        """After a step: what was rounded is the masters, rounded."""
        for master, rounded, _ in self._copies:
            rounded.copy_(master)

    @torch.no_grad()
    def follow(self) -> None:
        """Before a step: elements that something else changed (`load_state_dict`) become their masters'. A
        version is a hint: it changes too where parameters come and go (ZeRO-3)."""
        for (master, rounded, parameter), version in zip(self._copies, self._versions, strict=True):
            if parameter._version != version:
                same = master.to(rounded.dtype) == rounded
                master.copy_(torch.where(same, master, rounded.to(master.dtype)))

    def settle(self) -> None:
        """Masters and parameters belong together as they are; follow() looks for changes since."""
        self._versions = [parameter._version for _, _, parameter in self._copies]


class MasterWeights:
    """Puts masters into `optimizer`, until close(). Its step sees the gradients that take_gradients()
    brought, and publish() brings the model what it did. Does not communicate; without an optimizer it does
    nothing.
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None) -> None:
        self._optimizer = optimizer
        self._copies = Copies()
        self._masters: dict[nn.Parameter, nn.Parameter] = {}
        if optimizer is None:
            return
        self._whole = [list(group["params"]) for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                master = self._copies.of(parameter, parameter) if parameter.requires_grad else parameter
                if master is not parameter:
                    self._masters[parameter] = master
                    _move_state(optimizer, parameter, master)
            group["params"] = [self.of(parameter) for parameter in group["params"]]
        # There is no hook for this; the gradients to clear are the model's too.
        optimizer.zero_grad = self._clear  # type: ignore[method-assign]

    def of(self, parameter: nn.Parameter) -> nn.Parameter:
        """What the optimizer steps on for it."""
        return self._masters.get(parameter, parameter)

    @property
    def nbytes(self) -> int:
        return self._copies.nbytes

    def gradients(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Those that the optimizer sees, with their parameters' names."""
        for name, parameter in model.named_parameters():
            gradient = self.of(parameter).grad
            if gradient is not None:
                yield name, gradient

    def take_gradients(self) -> None:
        """The masters have the parameters' gradients, and the parameters None."""
        self._copies.follow()
        for parameter, master in self._masters.items():
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    def publish(self) -> None:
        """The parameters are the masters, rounded; the masters' gradients are dropped."""
        self._copies.publish()
        self.settle()
        for master in self._masters.values():
            master.grad = None

    def settle(self) -> None:
        """To be called when both were loaded."""
        self._copies.settle()

    def close(self) -> None:
        """The optimizer has the model's parameters again, without state."""
        if self._optimizer is None:
            return
        vars(self._optimizer).pop("zero_grad", None)
        for group, parameters in zip(self._optimizer.param_groups, self._whole, strict=False):
            group["params"] = parameters
        for master in self._masters.values():
            self._optimizer.state.pop(master, None)

    def _clear(self, set_to_none: bool = True) -> None:
        """What optimizer.zero_grad() does meanwhile."""
        assert self._optimizer is not None
        type(self._optimizer).zero_grad(self._optimizer, set_to_none)
        for parameter in self._masters:
            parameter.grad = None


def masters_wanted(optimizer: torch.optim.Optimizer | None, wanted: bool) -> MasterWeights:
    """For a strategy's `master_weights`. Raises TrainerError where there is no optimizer to have them."""
    if wanted and optimizer is None:
        raise TrainerError("master_weights: the optimizer holds them, and none was given")
    return MasterWeights(optimizer if wanted else None)


def widened(value: object, parameter: Tensor, stepped: Tensor) -> object:
    """An entry of a parameter's state, as it is for what is stepped in its place: for a master in float32."""
    if isinstance(value, Tensor) and value.dtype == parameter.dtype:
        return value.to(stepped.dtype)
    return value


def _move_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, master: nn.Parameter) -> None:
    if parameter in optimizer.state:
        optimizer.state[master] = {
            name: widened(value, parameter, master) for name, value in optimizer.state.pop(parameter).items()
        }
