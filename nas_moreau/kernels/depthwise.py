"""Depthwise convolutions of an accelerator, in Triton, for images whose channels lie side by side in memory.

Libraries are slow at groups of one channel: on an H200 a third of a search step was theirs (docs/gpu.md). Here a
program computes a tile of pixels x channels; neighbours are read again for every tap, from the cache. Sums are kept in
float32 (float64 for float64) and their order is fixed.

Import it only where `triton` is installed; with TRITON_INTERPRET=1 it runs on a CPU, number by number.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHANNELS, _TILE = 16, 1024  # of a program: channels at most, pixels * channels
_PROGRAMS = 512  # of a weight gradient, about: each sums over its share of the pixels


@triton.jit(do_not_specialize=["pixels", "height", "width", "out_height", "out_width"])
def _gather(
    source,
    weight,
    target,
    pixels,
    channels,
    height,
    width,
    out_height,
    out_width,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    K: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ACC: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """Writes the convolution of `source` to `target`, or its transpose: the gradient in the image."""
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    image, place = p // (out_height * out_width), p % (out_height * out_width)
    row, column = place // out_width, place % out_width
    pad: tl.constexpr = DILATION * (K // 2)
    total = tl.zeros((BP, BC), ACC)
    for i in range(K):
        for j in tl.static_range(K):
            if TRANSPOSED:
                y, x = row + pad - i * DILATION, column + pad - j * DILATION
                met = (y >= 0) & (x >= 0) & (y % STRIDE == 0) & (x % STRIDE == 0)
                y, x = y // STRIDE, x // STRIDE
            else:
                y, x = row * STRIDE + i * DILATION - pad, column * STRIDE + j * DILATION - pad
                met = (y >= 0) & (x >= 0)
            met = met & (y < height) & (x < width) & (p < pixels)
            at = ((image * height + y) * width + x).to(tl.int64) * channels
            values = tl.load(source + at[:, None] + c[None, :], mask=met[:, None] & (c < channels)[None, :], other=0.0)
            tap = tl.load(weight + c * (K * K) + i * K + j, mask=c < channels, other=0.0)
            total += values.to(ACC) * tap.to(ACC)[None, :]
    kept = (p < pixels)[:, None] & (c < channels)[None, :]
    at = p.to(tl.int64) * channels
    tl.store(target + at[:, None] + c[None, :], total.to(target.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["pixels", "share", "height", "width", "out_height", "out_width"])
def _weight_gradient(
    source,
    grad,
    partial,
    pixels,
    share,
    channels,
    height,
    width,
    out_height,
    out_width,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    K: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACC: tl.constexpr,
    BP: tl.constexpr,
    BC: tl.constexpr,
):
    """Writes, for a share of the pixels and a row of taps, the sums over pixels of image * gradient, by channel."""
    part, i = tl.program_id(0), tl.program_id(2)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    taps = tl.arange(0, COLUMNS)
    pad: tl.constexpr = DILATION * (K // 2)
    total = tl.zeros((COLUMNS, BC), ACC)
    for start in range(0, share, BP):
        p = part * share + start + tl.arange(0, BP)
        image, place = p // (out_height * out_width), p % (out_height * out_width)
        row, column = place // out_width, place % out_width
        inside = (p < pixels)[:, None] & (c < channels)[None, :]
        at = p.to(tl.int64) * channels
        of_output = tl.load(grad + at[:, None] + c[None, :], mask=inside, other=0.0).to(ACC)
        y = row * STRIDE + i * DILATION - pad
        for j in tl.static_range(K):
            x = column * STRIDE + j * DILATION - pad
            met = (y >= 0) & (x >= 0) & (y < height) & (x < width)
            at = ((image * height + y) * width + x).to(tl.int64) * channels
            values = tl.load(source + at[:, None] + c[None, :], mask=inside & met[:, None], other=0.0).to(ACC)
            total += tl.where(taps[:, None] == j, tl.sum(values * of_output, axis=0)[None, :], 0.0)
    at = ((part * K + i) * K + taps) * channels
    tl.store(partial + at[:, None] + c[None, :], total, mask=(taps < K)[:, None] & (c < channels)[None, :])


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
        x, weight = x.contiguous(memory_format=torch.channels_last), weight.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.steps = stride, dilation
        shape = (x.shape[0], x.shape[1], *((side - 1) // stride + 1 for side in x.shape[2:]))
        return _launch_gather(x, weight, shape, stride, dilation, transposed=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _launch_gather(grad, weight, tuple(x.shape), *ctx.steps, transposed=True)
        if ctx.needs_input_grad[1]:
            of_weight = _launch_weight_gradient(x, grad, weight, *ctx.steps)
        return of_x, of_weight, None, None


def depthwise(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """Returns the depthwise convolution of x (n, c, h, w) with weight (c, 1, k, k), k odd, padded to keep the size.

    It has first derivatives, and a result whose channels lie side by side in memory.
    """
    return _Depthwise.apply(x, weight, stride, dilation)


def _launch_gather(
    source: Tensor, weight: Tensor, shape: tuple[int, ...], stride: int, dilation: int, *, transposed: bool
) -> Tensor:
    target = torch.empty(shape, dtype=source.dtype, device=source.device, memory_format=torch.channels_last)
    n, channels, height, width = shape
    pixels, (columns, rows) = n * height * width, _tile(channels)
    grid = (triton.cdiv(pixels, rows), triton.cdiv(channels, columns))
    sizes = (pixels, channels, *source.shape[2:], height, width)
    settings = {"STRIDE": stride, "DILATION": dilation, "K": weight.shape[-1], "ACC": _sum_type(source)}
    _gather[grid](source, weight, target, *sizes, **settings, TRANSPOSED=transposed, BP=rows, BC=columns)
    return target


def _launch_weight_gradient(x: Tensor, grad: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    n, channels, height, width = grad.shape
    pixels, k, (columns, rows) = n * height * width, weight.shape[-1], _tile(channels)
    across = triton.cdiv(channels, columns)
    parts = max(1, min(triton.cdiv(pixels, rows), _PROGRAMS // (across * k)))
    share = triton.cdiv(triton.cdiv(pixels, parts), rows) * rows
    kept = torch.float64 if x.dtype == torch.float64 else torch.float32
    partial = torch.empty((parts, k * k, channels), dtype=kept, device=x.device)
    sizes = (pixels, share, channels, *x.shape[2:], height, width)
    settings = {"STRIDE": stride, "DILATION": dilation, "K": k, "COLUMNS": triton.next_power_of_2(k)}
    grid = (parts, across, k)
    _weight_gradient[grid](x, grad, partial, *sizes, **settings, ACC=_sum_type(x), BP=rows, BC=columns)
    return partial.sum(0).t().reshape(weight.shape).to(weight.dtype)


def _tile(channels: int) -> tuple[int, int]:
    """Returns the channels and the pixels of a program."""
    columns = min(_CHANNELS, triton.next_power_of_2(channels))
    return columns, _TILE // columns


def _sum_type(x: Tensor) -> Any:
    return tl.float64 if x.dtype == torch.float64 else tl.float32
