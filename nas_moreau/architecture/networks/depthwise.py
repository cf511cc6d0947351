"""Depthwise convolutions, which libraries are slow at.

On a CPU the library's weight gradient runs ten to thirty times slower for kernels wider than three columns than for
narrower ones. A wide kernel is several narrow ones side by side, each over the image shifted to the right, so its
gradient is assembled from theirs. The sums are the same, in the same order for each tap.

On an accelerator there are kernels in Triton beside the library's. The first call of a training with tensors of some
form tries both: Triton's are used where they find the same numbers in less time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as f

from nas_moreau.kernels.build import switched_off

_jit: Any = torch.jit  # its types leave is_tracing out
_QUICK_COLUMNS = 3
_MOST_DIFFERENCE = {torch.float64: 1e-9, torch.float32: 1e-2, torch.bfloat16: 5e-2}
"""Relative to the library's result, which may come from TF32."""
_WARM_UP, _ROUNDS, _BUSY, _BUSY_ROUNDS = 2, 5, 4096, 8

Convolution = Callable[[Tensor, Tensor, int, int], Tensor]
"""(image, weight, stride, dilation) -> the depthwise convolution."""

trials: dict[tuple[Any, ...], bool] = {}
"""Form of the tensors -> whether Triton's kernels are used; filled at the first call with each."""


def depthwise(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """Returns the depthwise convolution of x (n, c, h, w) with weight (c, 1, k, k), k odd, padded to keep the size."""
    kind = x.device.type
    if kind == "cpu":
        plain = torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
        if plain or weight.shape[-1] <= _QUICK_COLUMNS or dilation > 1:
            return _library(x, weight, stride, dilation)
        return _WideKernel.apply(x, weight, stride)
    if torch.compiler.is_compiling() or _jit.is_tracing() or not _has_triton(kind):
        return _library(x, weight, stride, dilation)
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight = x.to(dtype), weight.to(dtype)
    form = (x.device, x.dtype, tuple(x.shape), weight.shape[-1], stride, dilation)
    if form not in trials:
        if _is_recorded(kind) or not torch.is_grad_enabled():
            return _library(x, weight, stride, dilation)  # a trial waits for the device, and takes gradients
        with _on(x.device):
            trials[form] = _triton_is_better(x, weight, stride, dilation)
    if not trials[form]:
        return _library(x, weight, stride, dilation)
    with _on(x.device):
        return _triton()(x, weight, stride, dilation)


def trials_text() -> str:
    """Returns for how many forms of tensors Triton's kernels are used, "" if none were tried."""
    return f"depthwise convolutions in Triton for {sum(trials.values())} of {len(trials)} shapes" if trials else ""


def _library(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    return f.conv2d(x, weight, None, stride, dilation * (weight.shape[-1] // 2), dilation, len(weight))


def _triton() -> Convolution:
    from nas_moreau.kernels.depthwise import depthwise as convolution

    return convolution


@cache
def _has_triton(kind: str) -> bool:
    """Whether Triton is installed and drives devices of this kind."""
    if switched_off():
        return False
    try:
        from triton.runtime import driver

        return driver.active.get_active_torch_device().type == kind
    except (ImportError, AttributeError, RuntimeError):  # it is missing, older, or has no device
        return False


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Within it, kernels and events are the device's, which need not be the current one."""
    return torch.get_device_module(device).device(device)


def _is_recorded(kind: str) -> bool:
    capturing = getattr(getattr(torch, kind, None), "is_current_stream_capturing", None)
    return capturing is not None and capturing()


def _triton_is_better(x: Tensor, weight: Tensor, stride: int, dilation: int) -> bool:
    """Whether Triton's kernels find what the library finds, forward and backward, and in less time."""
    leaves = [t.detach().requires_grad_() for t in (x, weight)]

    def run(convolution: Convolution) -> list[Tensor]:
        with torch.enable_grad():
            y = convolution(leaves[0], leaves[1], stride, dilation)
            return [y.detach(), *torch.autograd.grad(y, leaves, y.detach())]

    try:
        pairs = list(zip(run(_triton()), run(_library)))
        right = all((a - b).norm() <= _MOST_DIFFERENCE.get(x.dtype, 0.0) * b.norm() for a, b in pairs)
        return right and _time(run, _triton()) < _time(run, _library)
    except Exception:  # whatever fails there, from a compiler to a driver: the library is left
        return False


def _time(run: Callable[[Convolution], list[Tensor]], convolution: Convolution) -> float:
    """Returns the milliseconds of a forward and backward pass on the device."""
    events: list[Any] = [torch.Event(enable_timing=True) for _ in range(2)]
    for _ in range(_WARM_UP):
        busy = torch.ones((_BUSY, _BUSY), device=run(convolution)[0].device)
    for _ in range(_BUSY_ROUNDS):  # meanwhile the host launches what is timed: its own time must not count
        busy = busy @ busy
    events[0].record()
    for _ in range(_ROUNDS):
        run(convolution)
    events[1].record()
    events[1].synchronize()
    return events[0].elapsed_time(events[1]) / _ROUNDS


class _WideKernel(torch.autograd.Function):
    """The convolution; its backward pass takes the weight gradient a few columns at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return f.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        size = weight.shape[-1]
        pad = size // 2

        def gradients(part: Tensor, kernel: Tensor, columns: int, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
            return torch.ops.aten.convolution_backward(
                grad, part, kernel, None, [ctx.stride] * 2, [pad, columns], [1, 1], False, [0, 0], len(weight), wanted
            )

        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = gradients(x, weight, pad, [True, False, False])[0]
        if ctx.needs_input_grad[1]:
            padded = f.pad(x, (pad, pad))
            starts = range(0, size, _QUICK_COLUMNS)
            ends = [min(start + _QUICK_COLUMNS, size) for start in starts]
            parts = [
                # the kernel's columns start..end meet these columns of the padded image
                gradients(
                    padded[..., start : padded.shape[-1] - size + end], weight[..., start:end], 0, [False, True, False]
                )[1]
                for start, end in zip(starts, ends)
            ]
            of_weight = torch.cat(parts, -1)
        return of_x, of_weight, None
