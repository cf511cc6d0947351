"""The candidate operations of an edge, built from the table of operations.

Every operation is kept in three parts, because the first and the last are what a supernet can share:

    prepare  parameter-free work on the state an edge leaves (ReLU, 3x3 pooling): the same for all edges that leave it
    body     the convolutions in between
    norm     the BatchNorm at its end, which can take the edge's architecture weight as its per-channel scale

`Operation.forward` is the plain composition of the three. Definitions follow DARTS (Liu et al., ICLR 2019),
NAS-Bench-201 (Dong & Yang, ICLR 2020) for the `nor_conv` operations and RobustDARTS (Zela et al., ICLR 2020) for
`noise`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from nas_moreau.architecture.networks.batch_norm import batch_norm
from nas_moreau.architecture.networks.batch_shard import draw_rows
from nas_moreau.architecture.networks.depthwise import depthwise
from nas_moreau.architecture.spaces.operation_table import OPERATIONS, OperationInfo, check_operations

Norm = Callable[[int], nn.Module]
"""Number of channels -> a BatchNorm."""


DILATION = 2
"""Dilation of the `dil_conv` operations."""


_OVERRUN = 0 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else 8
"""Below so many channels torch's weight gradient of a strided 1x1 convolution writes beyond its memory on CPUs of 8
lanes (seen with torch 2.14.1, AVX2, channels last, even sides: "free(): invalid pointer")."""


class PlainBatchNorm(nn.Module):
    """Batch normalisation without affine parameters; a call can pass a per-channel scale.

    alpha * BN(z) equals BN(z) with weight alpha, so an edge's architecture weight costs no extra pass over the tensor.

    Args:
        channels: Number of channels.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, z: Tensor, scale: Tensor | None = None) -> Tensor:
        """Returns `scale * (z - mean) / std`, z of shape (n, channels, h, w), scale of shape (channels,)."""
        return batch_norm(z, self.running_mean, self.running_var, scale, None, self.training)


class Parts(NamedTuple):
    """What an operation consists of: `prepare` is a key of PREPARATIONS, `body` and `norm` may be absent."""

    prepare: str
    body: nn.Module | None
    norm: nn.Module | None


def _max_pool(x: Tensor, stride: int) -> Tensor:
    return f.max_pool2d(x, 3, stride, 1)


def _avg_pool(x: Tensor, stride: int) -> Tensor:
    return f.avg_pool2d(x, 3, stride, 1, count_include_pad=False)


# name -> function (state, stride); ReLU leaves the stride to the convolution that follows
PREPARATIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "identity": lambda x, stride: x,
    "relu": lambda x, stride: f.relu(x),
    "max_pool_3x3": _max_pool,
    "avg_pool_3x3": _avg_pool,
}


class Operation(nn.Module):
    """One candidate of one edge: (n, c, h, w) -> (n, c, h/stride, w/stride).

    Args:
        info: Its row in the table of operations.
        parts: What it consists of.
        stride: 1 or 2.

    Attributes:
        kind: As in the table, but "identity" for a skip of stride 1 and "pair" for one of stride 2.
    """

    def __init__(self, info: OperationInfo, parts: Parts, stride: int):
        super().__init__()
        self.name, self.prepare, self.stride, self.kernel = info.name, parts.prepare, stride, info.kernel
        self.kind = {"skip": "identity" if stride == 1 else "pair"}.get(info.kind, info.kind)
        self.dilation = DILATION if self.kind == "dilated" else 1
        self.body, self.norm = parts.body, parts.norm

    @property
    def is_identity(self) -> bool:
        """Whether the operation passes its input on unchanged (drop-path does not apply to it)."""
        return self.kind == "identity"

    def convolutions(self) -> tuple[nn.Conv2d, ...]:
        """Returns the convolutions in the order in which they run (those of a pair side by side)."""
        return tuple(layer for layer in self.modules() if isinstance(layer, nn.Conv2d))

    def norms(self) -> tuple[nn.Module, ...]:
        """Returns the BatchNorms in the order in which they run."""
        return tuple(layer for layer in self.modules() if isinstance(layer, PlainBatchNorm | nn.BatchNorm2d))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the result for a state x (n, c, h, w)."""
        x = PREPARATIONS[self.prepare](x, self.stride)
        if self.body is not None:
            x = self.body(x)
        return x if self.norm is None else self.norm(x)


class HalvedPair(nn.Module):
    """Halves the image with two 1x1 convolutions of stride 2, the second shifted by one pixel, side by side.

    It is the factorized reduction of DARTS without its ReLU and norm. Odd sides are padded on the right and below.
    """

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__()
        self.even = _StridedPointwise(channels_in, channels_out // 2, 1, 2, bias=False)
        self.odd = _StridedPointwise(channels_in, channels_out - channels_out // 2, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (n, channels_out, ceil(h/2), ceil(w/2)) of x (n, channels_in, h, w)."""
        height, width = x.shape[-2:]
        shifted = f.pad(x, (0, width % 2, 0, height % 2))[:, :, 1:, 1:]
        return torch.cat((self.even(x), self.odd(shifted)), 1)


class _StridedPointwise(nn.Conv2d):
    """A 1x1 convolution of stride 2."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (n, k, ceil(h/2), ceil(w/2)) of x (n, c, h, w)."""
        return halved(x, self.weight, self.in_channels)


def halved(x: Tensor, weight: Tensor, channels: int) -> Tensor:
    """Returns the 1x1 convolution of stride 2 of x (n, channels, h, w) with weight (k, channels, 1, 1)."""
    if channels < _OVERRUN:  # on every device: some compute by the CPU's kernels
        return f.conv2d(x[:, :, ::2, ::2], weight)
    return f.conv2d(x, weight, None, 2)


class Noise(nn.Module):
    """A fresh standard normal sample in the shape of the (strided) input: the harmful candidate of RobustDARTS S4."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sample, (n, c, h/stride, w/stride)."""
        strided = x[:, :, :: self.stride, :: self.stride]

        def draw(rows: int) -> Tensor:
            if rows == len(x):
                return torch.randn_like(strided)
            strides = torch.empty_like(strided).stride()
            return torch.empty_strided((rows, *strided.shape[1:]), strides, dtype=x.dtype, device=x.device).normal_()

        return draw_rows(len(x), draw)


class _Depthwise(nn.Conv2d):
    """A depthwise convolution, on an accelerator by the kernels that are faster there."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (n, channels, ceil(h/stride), ceil(w/stride)) of x (n, channels, h, w)."""
        # a symbolic trace hands in something else; CPUs have the native cell, whose portable form is torch's
        if not isinstance(x, Tensor) or x.device.type == "cpu":
            return super().forward(x)
        return depthwise(x, self.weight, self.stride[0], self.dilation[0])


def _depthwise(channels: int, kernel: int, stride: int, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel - 1) // 2
    return _Depthwise(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)


def _pointwise(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 1, bias=False)


def _separable(kernel: int, channels: int, stride: int, norm: Norm) -> Parts:
    body = nn.Sequential(
        _depthwise(channels, kernel, stride),
        _pointwise(channels),
        norm(channels),
        nn.ReLU(),
        _depthwise(channels, kernel, 1),
        _pointwise(channels),
    )
    return Parts("relu", body, norm(channels))


def _dilated(kernel: int, channels: int, stride: int, norm: Norm) -> Parts:
    body = nn.Sequential(_depthwise(channels, kernel, stride, DILATION), _pointwise(channels))
    return Parts("relu", body, norm(channels))


def _factorised(kernel: int, channels: int, stride: int, norm: Norm) -> Parts:
    pad = kernel // 2
    row = nn.Conv2d(channels, channels, (1, kernel), (1, stride), (0, pad), bias=False)
    column = nn.Conv2d(channels, channels, (kernel, 1), (stride, 1), (pad, 0), bias=False)
    return Parts("relu", nn.Sequential(row, column), norm(channels))


def _convolution(kernel: int, channels: int, stride: int, norm: Norm) -> Parts:
    return Parts("relu", nn.Conv2d(channels, channels, kernel, stride, kernel // 2, bias=False), norm(channels))


def _skip(kernel: int, channels: int, stride: int, norm: Norm) -> Parts:
    if stride == 1:
        return Parts("identity", None, None)
    return Parts("relu", HalvedPair(channels, channels), norm(channels))


_BUILDERS: dict[str, Callable[[int, int, int, Norm], Parts]] = {
    "skip": _skip,
    "max_pool": lambda kernel, channels, stride, norm: Parts("max_pool_3x3", None, None),
    "avg_pool": lambda kernel, channels, stride, norm: Parts("avg_pool_3x3", None, None),
    "separable": _separable,
    "dilated": _dilated,
    "factorised": _factorised,
    "convolution": _convolution,
    "noise": lambda kernel, channels, stride, norm: Parts("identity", Noise(stride), None),
}
"""Kind -> (kernel size, channels, stride, norm) -> the parts of the operation."""


def build_operation(name: str, channels: int, stride: int, norm: Norm, *, pool_norm: bool = False) -> Operation:
    """Returns an operation for `channels` channels.

    Args:
        name: An operation of the table other than `none`, which contributes nothing and has no module.
        channels: Channels in and out.
        stride: 1 or 2.
        norm: Makes a BatchNorm from a number of channels.
        pool_norm: Put a BatchNorm after pooling, as DARTS supernets do and derived networks do not.

    Raises:
        InputError: The name is not in the table.
    """
    check_operations((name,), f"operation '{name}'")
    info = OPERATIONS[name]
    if info.build is not None:
        return Operation(info, Parts("identity", info.build(channels, stride, norm), None), stride)
    parts = _BUILDERS[info.kind](info.kernel, channels, stride, norm)
    if pool_norm and info.is_pool:
        parts = parts._replace(norm=norm(channels))
    return Operation(info, parts, stride)
