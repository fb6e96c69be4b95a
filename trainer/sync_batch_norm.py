"""BatchNorm over the samples of all ranks (Ioffe and Szegedy, ICML 2015): that of one process with them all.

torch.nn.SyncBatchNorm does so for CUDA alone; on CPU it normalises over the rank's own samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from pycomm import Communicator
from trainer.errors import TrainerError


class SyncBatchNorm(_BatchNorm):
    """Any BatchNorm1d, 2d or 3d, in training, over (samples of all ranks, channels, ...); parameters,
    buffers and evaluation are theirs.

    Forward and backward each have one all_reduce, of 2 C + 1 and 2 C float64, and block: all ranks run the
    same layers in the same order, forward and backward. A rank without a sample takes part with an empty
    batch, (0, channels, ...). Numbers of samples may differ. Raises ValueError, on all ranks, for a single
    value per channel.
    """

    def __init__(self, features: int, comm: Communicator, **options: Any) -> None:
        """`options`: BatchNorm's own. `comm`: one that nothing else uses, see convert_sync_batchnorm()."""
        super().__init__(features, **options)
        self._comm = comm

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(f"expected (samples, {self.num_features}, ...), got {tuple(input.shape)}")
        if not self.training:
            return functional.batch_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                training=self.running_mean is None,
                eps=self.eps,
            )
        normalized: tuple[Tensor, ...] = _Normalize.apply(input, self.weight, self.bias, self.eps, self._comm)  # type: ignore[no-untyped-call]
        output, mean, variance, count = normalized
        self._observe(mean, variance, int(count))
        return output

    @torch.no_grad()
    def _observe(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Moves the running statistics; the variance that they hold is the unbiased one."""
        if self.running_mean is None or self.running_var is None or not count:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        unbiased = variance * (count / (count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def convert_sync_batchnorm(model: nn.Module, comm: Communicator) -> int:
    """Puts a SyncBatchNorm in the place of each BatchNorm1d, 2d and 3d inside `model`, with the same
    parameters and buffers, and so under the same names; returns how many. Collective, blocks: the layers have
    a communicator of their own, so that their operations need no order among the gradients'.

    Do it before DataParallel or Zero is made; an optimizer made before stays right.
    """
    own = comm.split(0)
    assert own is not None
    found = 0
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                setattr(parent, name, _converted(child, own))
                found += 1
    return found


def has_sync_batchnorm(model: nn.Module) -> bool:
    return any(isinstance(module, SyncBatchNorm) for module in model.modules())


def check_batchnorm(model: nn.Module) -> None:
    """Raises TrainerError where there is nothing to convert."""
    if not any(isinstance(child, _BatchNorm) for child in model.children() for child in child.modules()):
        raise TrainerError("sync_batchnorm: the model has no BatchNorm inside")


def _converted(old: _BatchNorm, comm: Communicator) -> SyncBatchNorm:
    new = SyncBatchNorm(
        old.num_features,
        comm,
        eps=old.eps,
        momentum=old.momentum,
        affine=False,
        track_running_stats=False,
    )
    new.affine, new.track_running_stats, new.training = old.affine, old.track_running_stats, old.training
    new._parameters, new._buffers = old._parameters, old._buffers
    return new


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias by channel, with mean and variance over all ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, comm: Communicator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns output, mean, variance (float64, not differentiable) and the values per channel."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count, mean, variance = _statistics(wide, comm)
        if count == 1:
            raise ValueError(f"expected more than 1 value per channel over all ranks, got {tuple(x.shape)}")
        inverse = (variance + eps).rsqrt().to(wide.dtype)
        scale = inverse if weight is None else inverse * weight
        output = (wide - _by_channel(mean.to(wide.dtype), x)) * _by_channel(scale, x)
        if bias is not None:
            output += _by_channel(bias, x)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.comm, ctx.count, ctx.has_bias = comm, count, bias is not None
        total = torch.tensor(count)
        ctx.mark_non_differentiable(mean, variance, total)
        return output.to(x.dtype), mean, variance, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the sum of all ranks' losses; weight and bias get this rank's share of theirs."""
        x, weight, mean, inverse = ctx.saved_tensors
        wide = gradient.to(inverse.dtype)
        normal = (x.to(inverse.dtype) - _by_channel(mean.to(inverse.dtype), x)) * _by_channel(inverse, x)
        own = torch.stack([_sum(wide), _sum(wide * normal)])
        both = ctx.comm.all_reduce(own.clone()) / max(1, ctx.count)
        slope, tilt = (_by_channel(part.to(inverse.dtype), x) for part in both)
        scale = inverse if weight is None else inverse * weight
        back = (wide - slope - normal * tilt) * _by_channel(scale, x)
        for_weight = None if weight is None else own[1].to(weight.dtype)
        for_bias = own[0].to(weight.dtype if weight is not None else inverse.dtype) if ctx.has_bias else None
        return back.to(x.dtype), for_weight, for_bias, None, None


def _statistics(x: Tensor, comm: Communicator) -> tuple[int, Tensor, Tensor]:
    """Count, mean and variance of each channel over all ranks, in float64, the same bits on all ranks.

    Each rank's own mean and variance are combined (Chan, Golub and LeVeque, 1979), so that float32 squares of
    large means are never subtracted from each other.
    """
    channels = x.shape[1]
    count = x.numel() // channels if channels else 0
    told = torch.zeros(2 * channels + 1, dtype=torch.float64)
    if count:
        variance, mean = torch.var_mean(x, _others(x), correction=0)
        mean = mean.double()
        told[0] = count
        told[1 : channels + 1] = count * mean
        told[channels + 1 :] = count * (variance.double() + mean.square())
    comm.all_reduce(told)
    total = int(told[0])
    mean = told[1 : channels + 1] / max(1, total)
    variance = (told[channels + 1 :] / max(1, total) - mean.square()).clamp_(min=0)
    return total, mean, variance


def _others(x: Tensor) -> list[int]:
    """The dims without that of channels."""
    return [0, *range(2, x.dim())]


def _sum(x: Tensor) -> Tensor:
    return x.sum(_others(x), dtype=torch.float64)


def _by_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2))
