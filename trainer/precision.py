"""What a run computes and keeps in 16 bits, by name.

`bf16` and `fp16`: parameters, gradients and the optimizer are float32, and torch.autocast computes what gains
by it in 16 bits. `bf16_params` and `fp16_params`: the model itself is 16-bit, its gradients and their traffic
too, and the optimizer steps on float32 master weights. float16 has a LossScaler; bfloat16 has float32's range
and needs none. Evaluation and predictions compute as the parameters are.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pycomm import Communicator
from trainer.errors import TrainerError
from trainer.scaler import LossScaler

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PARAMS = "_params"


@dataclass(frozen=True)
class Precision:
    """One run's. `autocast_dtype`: None where the forward computes in the parameters' dtype."""

    autocast_dtype: torch.dtype | None = None
    scaler: LossScaler | None = None

    @classmethod
    def of(cls, name: str, comm: Communicator) -> Precision:
        scaler = LossScaler(comm) if name.startswith("fp16") else None
        return cls(HALVES.get(name), scaler)

    def autocast(self) -> AbstractContextManager[Any]:
        """Around a forward."""
        return torch.autocast("cpu", self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def scaled(self, loss: Tensor) -> Tensor:
        """What is back-propagated."""
        return loss if self.scaler is None else self.scaler.scaled(loss)


def has_master_weights(name: str) -> bool:
    return name.endswith(PARAMS)


def check_codec(name: str, codec: str) -> None:
    """Raises TrainerError for a codec that would have nothing to make smaller."""
    if has_master_weights(name) and codec != "none":
        raise TrainerError(
            f"precision {name}: gradients are of 16 bits as they are: expected codec none, got {codec}"
        )


def make_16_bit(model: nn.Module, name: str) -> nn.Module:
    """The model with parameters and buffers of the dtype that `name` says, taking and giving what it did: its
    floating-point inputs are rounded, its outputs float32. BatchNorm stays float32: its running statistics
    are sums of small steps."""
    if not has_master_weights(name):
        return model
    dtype = HALVES[name.removesuffix(PARAMS)]
    model.to(dtype)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.float()
    model.register_forward_pre_hook(lambda _, inputs: tuple(_to(value, dtype) for value in inputs))
    model.register_forward_hook(lambda _, __, output: wide(output))
    return model


def wide(output: Any) -> Any:
    """A 16-bit tensor as float32, for the loss: 16 bits are too few to add up losses in."""
    return output.float() if isinstance(output, Tensor) and output.dtype in HALVES.values() else output


def _to(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
