"""The candidate operations of an edge, and how a user adds one.

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
from nas_moreau.architecture.spaces.known_operations import KNOWN_OPERATIONS, check_operations
from nas_moreau.errors import InputError

Norm = Callable[[int], nn.Module]
# (channels, stride, norm) -> the operation's module
Build = Callable[[int, int, Norm], nn.Module]


class PlainBatchNorm(nn.Module):
    """Batch normalisation without affine parameters whose call may bring a per-channel scale.

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
    """One candidate of one edge; called plainly it is the operation: (n, c, h, w) -> (n, c, h/stride, w/stride)."""

    def __init__(self, name: str, parts: Parts, stride: int):
        super().__init__()
        self.name, self.prepare, self.stride = name, parts.prepare, stride
        self.body, self.norm = parts.body, parts.norm

    @property
    def is_identity(self) -> bool:
        """Whether the operation passes its input on unchanged (drop-path spares it)."""
        return self.prepare == "identity" and self.body is None and self.norm is None

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
        self.even = nn.Conv2d(channels_in, channels_out // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(channels_in, channels_out - channels_out // 2, 1, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (n, channels_out, ceil(h/2), ceil(w/2)) of x (n, channels_in, h, w)."""
        height, width = x.shape[-2:]
        shifted = f.pad(x, (0, width % 2, 0, height % 2))[:, :, 1:, 1:]
        return torch.cat((self.even(x), self.odd(shifted)), 1)


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


def _depthwise(channels: int, kernel: int, stride: int, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)


def _pointwise(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 1, bias=False)


def _separable(kernel: int) -> Callable[[int, int, Norm], Parts]:
    def build(channels: int, stride: int, norm: Norm) -> Parts:
        body = nn.Sequential(
            _depthwise(channels, kernel, stride),
            _pointwise(channels),
            norm(channels),
            nn.ReLU(),
            _depthwise(channels, kernel, 1),
            _pointwise(channels),
        )
        return Parts("relu", body, norm(channels))

    return build


def _dilated(kernel: int) -> Callable[[int, int, Norm], Parts]:
    def build(channels: int, stride: int, norm: Norm) -> Parts:
        body = nn.Sequential(_depthwise(channels, kernel, stride, dilation=2), _pointwise(channels))
        return Parts("relu", body, norm(channels))

    return build


def _factorized(kernel: int) -> Callable[[int, int, Norm], Parts]:
    def build(channels: int, stride: int, norm: Norm) -> Parts:
        pad = kernel // 2
        row = nn.Conv2d(channels, channels, (1, kernel), (1, stride), (0, pad), bias=False)
        column = nn.Conv2d(channels, channels, (kernel, 1), (stride, 1), (pad, 0), bias=False)
        return Parts("relu", nn.Sequential(row, column), norm(channels))

    return build


def _convolution(kernel: int) -> Callable[[int, int, Norm], Parts]:
    def build(channels: int, stride: int, norm: Norm) -> Parts:
        return Parts("relu", nn.Conv2d(channels, channels, kernel, stride, kernel // 2, bias=False), norm(channels))

    return build


def _skip(channels: int, stride: int, norm: Norm) -> Parts:
    if stride == 1:
        return Parts("identity", None, None)
    return Parts("relu", HalvedPair(channels, channels), norm(channels))


def _noise(channels: int, stride: int, norm: Norm) -> Parts:
    return Parts("identity", Noise(stride), None)


_BUILDERS: dict[str, Callable[[int, int, Norm], Parts | nn.Module]] = {
    "skip_connect": _skip,
    "max_pool_3x3": lambda channels, stride, norm: Parts("max_pool_3x3", None, None),
    "avg_pool_3x3": lambda channels, stride, norm: Parts("avg_pool_3x3", None, None),
    "sep_conv_3x3": _separable(3),
    "sep_conv_5x5": _separable(5),
    "sep_conv_7x7": _separable(7),
    "dil_conv_3x3": _dilated(3),
    "dil_conv_5x5": _dilated(5),
    "conv_7x1_1x7": _factorized(7),
    "conv_3x1_1x3": _factorized(3),
    "nor_conv_1x1": _convolution(1),
    "nor_conv_3x3": _convolution(3),
    "noise": _noise,
}
BUILT_IN = ("none", *_BUILDERS)


def register_operation(name: str) -> Callable[[Build], Build]:
    """Makes an operation known by name, so that a search space can list it.

    The decorated function `(channels, stride, norm) -> nn.Module` returns a module that maps (n, channels, h, w) to
    (n, channels, h/stride, w/stride); `norm(channels)` makes the BatchNorm that fits the place (without affine
    parameters in a supernet, with them in a network).

    Raises:
        InputError: The name is taken.

    Example:
        >>> from torch import nn
        >>> @register_operation("doctest_conv")
        ... def doctest_conv(channels, stride, norm):
        ...     return nn.Sequential(nn.ReLU(), nn.Conv2d(channels, channels, 3, stride, 1, bias=False), norm(channels))
        >>> build_operation("doctest_conv", 4, 1, nn.BatchNorm2d).name
        'doctest_conv'
    """

    def register(build: Build) -> Build:
        if name in _BUILDERS or name in KNOWN_OPERATIONS:
            raise InputError(f"An operation named '{name}' exists already.", "Choose another name.")
        _BUILDERS[name] = build
        KNOWN_OPERATIONS[name] = None
        return build

    return register


def build_operation(name: str, channels: int, stride: int, norm: Norm, pool_norm: bool = False) -> Operation:
    """Returns operation `name` for `channels` channels.

    Args:
        name: A registered operation other than `none` (`none` contributes nothing, so nobody builds it).
        channels: Channels in and out.
        stride: 1 or 2.
        norm: Makes a BatchNorm from a number of channels.
        pool_norm: Put a BatchNorm after pooling, as DARTS supernets do and derived networks do not.

    Raises:
        InputError: The name is not registered.
    """
    if name not in _BUILDERS:
        check_operations((name,), f"operation '{name}'")
        raise InputError(
            f"Operation '{name}' has a name but no code here.",
            "Bring its module in with --import or register_operation.",
        )
    parts = _BUILDERS[name](channels, stride, norm)
    if not isinstance(parts, Parts):
        parts = Parts("identity", parts, None)
    if pool_norm and parts.prepare.endswith("pool_3x3"):
        parts = parts._replace(norm=norm(channels))
    return Operation(name, parts, stride)
