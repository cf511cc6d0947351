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

_CHANNELS, _TILE = 16, 1024  # of a program: channels at most, pixels * channels
_PROGRAMS = 512  # of a weight gradient, about: each sums over its share of the pixels


@triton.jit
def _place(p, height, width):
    """Returns image, row and column of pixel number p of images of this size."""
    inside = p % (height * width)
    return p // (height * width), inside // width, inside % width


@triton.jit
def _pixels(pointer, p, c, channels):
    """Returns the addresses of pixels x channels of images whose channels lie side by side."""
    return pointer + (p.to(tl.int64) * channels)[:, None] + c[None, :]


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
    image, row, column = _place(p, out_height, out_width)
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
            at = _pixels(source, (image * height + y) * width + x, c, channels)
            values = tl.load(at, mask=met[:, None] & (c < channels)[None, :], other=0.0)
            tap = tl.load(weight + c * (K * K) + i * K + j, mask=c < channels, other=0.0)
            total += values.to(ACC) * tap.to(ACC)[None, :]
    kept = (p < pixels)[:, None] & (c < channels)[None, :]
    tl.store(_pixels(target, p, c, channels), total.to(target.dtype.element_ty), mask=kept)


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
        image, row, column = _place(p, out_height, out_width)
        inside = (p < pixels)[:, None] & (c < channels)[None, :]
        of_output = tl.load(_pixels(grad, p, c, channels), mask=inside, other=0.0).to(ACC)
        y = row * STRIDE + i * DILATION - pad
        for j in tl.static_range(K):
            x = column * STRIDE + j * DILATION - pad
            met = (y >= 0) & (x >= 0) & (y < height) & (x < width)
            at = _pixels(source, (image * height + y) * width + x, c, channels)
            values = tl.load(at, mask=inside & met[:, None], other=0.0).to(ACC)
            total += tl.where(taps[:, None] == j, tl.sum(values * of_output, axis=0)[None, :], 0.0)
    at = _pixels(partial, (part * K + i) * K + taps, c, channels)
    tl.store(at, total, mask=(taps < K)[:, None] & (c < channels)[None, :])


class _Convolution(torch.autograd.Function):
    """(image, weight) -> result. It and its two gradients are linear in both arguments, and each other's gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.steps = stride, dilation
        sides = ((side - 1) // stride + 1 for side in x.shape[2:])
        return _launch_gather(x, weight, (*x.shape[:2], *sides), stride, dilation, transposed=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad[:2]
        return (
            _ImageGradient.apply(grad, weight, x.shape, *ctx.steps) if of_x else None,
            _WeightGradient.apply(x, grad, weight.shape[-1], *ctx.steps) if of_weight else None,
            None,
            None,
        )


class _ImageGradient(torch.autograd.Function):
    """(gradient in the result, weight) -> gradient in the image."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, shape: torch.Size, stride: int, dilation: int) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.steps = stride, dilation
        return _launch_gather(grad, weight, tuple(shape), stride, dilation, transposed=True)

    @staticmethod
    def backward(ctx: Any, again: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad, weight = ctx.saved_tensors
        of_grad, of_weight = ctx.needs_input_grad[:2]
        return (
            _Convolution.apply(again, weight, *ctx.steps) if of_grad else None,
            _WeightGradient.apply(again, grad, weight.shape[-1], *ctx.steps) if of_weight else None,
            None,
            None,
            None,
        )


class _WeightGradient(torch.autograd.Function):
    """(image, gradient in the result) -> gradient in the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grad: Tensor, k: int, stride: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, grad)
        ctx.steps = stride, dilation
        return _launch_weight_gradient(x, grad, k, stride, dilation)

    @staticmethod
    def backward(ctx: Any, again: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, grad = ctx.saved_tensors
        of_x, of_grad = ctx.needs_input_grad[:2]
        return (
            _ImageGradient.apply(grad, again, x.shape, *ctx.steps) if of_x else None,
            _Convolution.apply(x, again, *ctx.steps) if of_grad else None,
            None,
            None,
            None,
        )


def depthwise(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """Returns the depthwise convolution of x (n, c, h, w) with weight (c, 1, k, k), k odd, padded to keep the size.

    It has derivatives of every order, and a result whose channels lie side by side in memory.
    """
    return _Convolution.apply(x, weight, stride, dilation)


def _launch_gather(
    source: Tensor, weight: Tensor, shape: tuple[int, ...], stride: int, dilation: int, *, transposed: bool
) -> Tensor:
    source, weight = _dense(source), weight.contiguous()
    target = torch.empty(shape, dtype=source.dtype, device=source.device, memory_format=torch.channels_last)
    n, channels, height, width = shape
    pixels, (columns, rows) = n * height * width, _tile(channels)
    grid = (triton.cdiv(pixels, rows), triton.cdiv(channels, columns))
    sizes = (pixels, channels, *source.shape[2:], height, width)
    settings = {"STRIDE": stride, "DILATION": dilation, "K": weight.shape[-1], "ACC": _sum_type(source)}
    _gather[grid](source, weight, target, *sizes, **settings, TRANSPOSED=transposed, BP=rows, BC=columns)
    return target


def _launch_weight_gradient(x: Tensor, grad: Tensor, k: int, stride: int, dilation: int) -> Tensor:
    x, grad = _dense(x), _dense(grad)
    n, channels, height, width = grad.shape
    pixels, (columns, rows) = n * height * width, _tile(channels)
    across = triton.cdiv(channels, columns)
    parts = max(1, min(triton.cdiv(pixels, rows), _PROGRAMS // (across * k)))
    share = triton.cdiv(triton.cdiv(pixels, parts), rows) * rows
    kept = torch.float64 if x.dtype == torch.float64 else torch.float32
    partial = torch.empty((parts, k * k, channels), dtype=kept, device=x.device)
    sizes = (pixels, share, channels, *x.shape[2:], height, width)
    settings = {"STRIDE": stride, "DILATION": dilation, "K": k, "COLUMNS": triton.next_power_of_2(k)}
    grid = (parts, across, k)
    _weight_gradient[grid](x, grad, partial, *sizes, **settings, ACC=_sum_type(x), BP=rows, BC=columns)
    return partial.sum(0).t().reshape(channels, 1, k, k).to(x.dtype)


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _tile(channels: int) -> tuple[int, int]:
    """Returns the channels and the pixels of a program."""
    columns = min(_CHANNELS, triton.next_power_of_2(channels))
    return columns, _TILE // columns


def _sum_type(x: Tensor) -> Any:
    return tl.float64 if x.dtype == torch.float64 else tl.float32
