"""BatchNorm with the statistics of all processes' shards, on any device and backend.

torch's SyncBatchNorm needs an accelerator. Here a process sends mean and variance of every channel, and two further
means in the backward pass: two small exchanges for each norm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from nas_moreau.architecture.networks.batch_shard import Gather, gatherer

_AXES = (0, 2, 3)


class _Synchronised(torch.autograd.Function):
    """(x, scale, bias) -> scale * (x - mean) / std + bias, with mean and variance over all processes' x.

    All shards have the same size. As with torch's SyncBatchNorm the gradient in x is that of the sum of all processes'
    losses, those in scale and bias are this process's part of it: the mean over the processes gives both for the mean
    loss.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bias: Tensor, gather: Gather, eps: float) -> Any:
        z = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        own_variance, own_mean = torch.var_mean(z, _AXES, correction=0)
        means, variances = gather(torch.stack([own_mean, own_variance])).unbind(1)
        mean = means.mean(0)
        # variance of the whole batch: the mean of the shards' variances, and the variance of their means
        variance = variances.mean(0) + (means - mean).square().mean(0)
        inverse = (variance + eps).rsqrt()
        hat = (z - _wide(mean)) * _wide(inverse)
        ctx.save_for_backward(hat, inverse, scale)
        ctx.gather = gather
        ctx.mark_non_differentiable(mean, variance)
        return torch.addcmul(_wide(bias), hat, _wide(scale)).to(x.dtype), mean, variance, len(means)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        hat, inverse, scale = ctx.saved_tensors
        dtype, grad = grad.dtype, grad.to(hat.dtype)
        own = torch.stack([grad.mean(_AXES), (grad * hat).mean(_AXES)])
        count = grad.numel() // grad.shape[1]
        whole = ctx.gather(own).mean(0)
        direct = torch.addcmul(grad - _wide(whole[0]), hat, _wide(whole[1]), value=-1)
        return (direct * _wide(inverse * scale)).to(dtype), own[1] * count, own[0] * count, None, None


def _wide(channels: Tensor) -> Tensor:
    return channels[:, None, None]


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Returns `torch.nn.functional.batch_norm` of the same arguments, over all processes where they gather."""
    gather = gatherer()
    if gather is None or not training:
        return f.batch_norm(x, mean, variance, scale, bias, training, momentum, eps)
    scale = torch.ones_like(mean) if scale is None else scale
    bias = torch.zeros_like(mean) if bias is None else bias
    out, found_mean, found_variance, parts = _Synchronised.apply(x, scale, bias, gather, eps)
    with torch.no_grad():
        count = x.numel() // x.shape[1] * parts
        mean.lerp_(found_mean.to(mean.dtype), momentum)
        variance.lerp_((found_variance * (count / (count - 1))).to(variance.dtype), momentum)
    return out


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that uses the statistics of all processes where they gather."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns the normalised x."""
        mean, variance, count = self.running_mean, self.running_var, self.num_batches_tracked
        if gatherer() is None or not self.training or mean is None or variance is None or count is None:
            return super().forward(x)
        count += 1
        return batch_norm(x, mean, variance, self.weight, self.bias, True, self.momentum or 0.0, self.eps)


def synchronise(module: nn.Module) -> None:
    """Makes every BatchNorm2d of `module` one that can gather; parameters, buffers and their names stay."""
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = SynchronisedBatchNorm2d
