"""Cells on the native operator: which modules it can take over, and the call.

Recognition goes by structure, not by name: an operation that a user registers runs natively if it is built like one of
the known kinds. A cell with one operation of another kind stays on the portable path as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from nas_moreau.architecture.networks.batch_shard import gatherer
from nas_moreau.architecture.networks.operations import HalvedPair, Operation, PlainBatchNorm
from nas_moreau.errors import InputError
from nas_moreau.kernels import cell as kernel
from nas_moreau.kernels.cell import Branch

KERNELS = ("auto", "portable", "native")
MOMENTUM = 0.1
_jit: Any = torch.jit  # its types leave is_tracing out


class Part(NamedTuple):
    """What an operation is made of, as the operator sees it."""

    kind: int
    kernel: int
    dilation: int
    convolutions: tuple[nn.Conv2d, ...]
    norms: tuple[Any, ...]  # PlainBatchNorm, or BatchNorm2d with running statistics


class NativeCell(NamedTuple):
    """The plan of one cell and the modules whose tensors it reads at every call."""

    numbers: list[int]
    convolutions: list[nn.Conv2d]
    norms: list[Any]  # as in `Part`
    affine: bool


def check_kernels(kernels: str) -> str:
    """Returns `kernels`; raises InputError when it names no choice or the native one is not to be had."""
    if kernels not in KERNELS:
        raise InputError(f"'{kernels}' names no kernels.", f"Choose one of {', '.join(KERNELS)}.")
    if kernels == "native" and not kernel.available():
        raise InputError("Native kernels cannot be used on this machine.", "Set kernels to auto or portable.")
    return kernels


def _is(conv: nn.Module, kernel_size: int | None = None, depthwise: bool = False) -> TypeGuard[nn.Conv2d]:
    """Whether `conv` is a square odd convolution with "same" padding, no bias, and all channels kept."""
    if not isinstance(conv, nn.Conv2d) or conv.bias is not None or conv.in_channels != conv.out_channels:
        return False
    size, dilation = conv.kernel_size[0], conv.dilation[0]
    return (
        conv.kernel_size == (size, size)
        and size in ((kernel_size,) if kernel_size else (3, 5, 7))
        and conv.dilation == (dilation, dilation)
        and conv.padding == (dilation * (size // 2),) * 2
        and conv.stride[0] == conv.stride[1]
        and conv.padding_mode == "zeros"
        and conv.groups == (conv.in_channels if depthwise else 1)
    )


def _norms_fit(norms: Iterable[nn.Module | None]) -> bool:
    return all(
        isinstance(norm, PlainBatchNorm)
        or (isinstance(norm, nn.BatchNorm2d) and norm.affine and norm.momentum == MOMENTUM and norm.eps == 1e-5)
        for norm in norms
    )


def part_of(operation: Operation) -> Part | None:
    """Returns what `operation` is to the native operator, or None if it is of no known kind."""
    body, norm = operation.body, operation.norm
    if operation.is_identity:
        return Part(kernel.SKIP, 1, 1, (), ())
    if operation.prepare.endswith("pool_3x3") and body is None:
        kind = kernel.LARGEST if operation.prepare.startswith("max") else kernel.AVERAGE
        norms = () if norm is None else (norm,)
        return Part(kind, 3, 1, (), norms) if _norms_fit(norms) else None
    if operation.prepare != "relu" or body is None or not _norms_fit([norm]):
        return None
    if isinstance(body, HalvedPair):
        fits = operation.stride == 2 and body.even.out_channels + body.odd.out_channels == body.even.in_channels
        return Part(kernel.PAIR, 1, 1, (body.even, body.odd), (norm,)) if fits else None
    if _is(body, 1):
        return Part(kernel.POINT, 1, 1, (body,), (norm,))
    if _is(body):
        return Part(kernel.DENSE, body.kernel_size[0], body.dilation[0], (body,), (norm,))
    layers: list[nn.Module] = list(body) if isinstance(body, nn.Sequential) else []
    if len(layers) not in (2, 6) or not _is(layers[0], None, True) or not _is(layers[1], 1):
        return None
    size, dilation = layers[0].kernel_size[0], layers[0].dilation[0]
    if len(layers) == 2:
        return Part(kernel.SINGLE, size, dilation, (layers[0], layers[1]), (norm,))
    if not (_norms_fit([layers[2]]) and isinstance(layers[3], nn.ReLU)):
        return None
    if not (_is(layers[4], size, True) and layers[4].dilation == layers[4].stride == (1, 1) and _is(layers[5], 1)):
        return None
    return Part(kernel.DOUBLE, size, dilation, (layers[0], layers[1], layers[4], layers[5]), (layers[2], norm))


def native_cell(
    inputs: int,
    nodes: int,
    channels: int,
    halves: bool,
    concat: tuple[int, ...],
    edges: Iterable[tuple[int, int, int, Operation]],
    droppable: bool = False,
) -> NativeCell | None:
    """Returns the plan of a cell, or None if it holds something the native operator does not know.

    Args:
        inputs: Number of input states.
        nodes: Number of nodes.
        channels: Channels of every state.
        halves: Edges that leave an input have stride 2.
        concat: States in the output, ascending.
        edges: (source, target, place in the mixture, operation); one operation may stand on several edges.
        droppable: Every operation but identities has a row in `keep`.
    """
    if min(concat) < inputs or list(concat) != sorted(set(concat)) or channels < 2:
        return None
    convolutions: list[nn.Conv2d] = []
    norms: list[Any] = []
    slots: dict[int, int] = {}
    branches, rows = [], 0
    for source, target, alpha, operation in edges:
        part = part_of(operation)
        if part is None or any(conv.in_channels != channels for conv in part.convolutions):
            return None
        slot = -1
        if part.norms:
            # a pool that several edges share has one norm
            slot = slots.setdefault(id(part.norms[0]), len(norms))
            if slot == len(norms):
                norms.extend(part.norms)
        mask = -1
        if droppable and part.kind != kernel.SKIP:
            mask, rows = rows, rows + 1
        place = len(convolutions)
        branches.append(Branch(part.kind, source, target, alpha, part.kernel, part.dilation, place, slot, mask))
        convolutions.extend(part.convolutions)
    affine = {isinstance(norm, nn.BatchNorm2d) for norm in norms}
    if len(affine) > 1:
        return None
    places = [concat.index(inputs + i) if inputs + i in concat else -1 for i in range(nodes)]
    numbers = kernel.cell_numbers(inputs, channels, halves, len(norms), places, branches)
    return NativeCell(numbers, convolutions, norms, affine == {True})


def usable(cell: NativeCell, kernels: str, states: list[Tensor], training: bool) -> bool:
    """Whether the native operator can take this call.

    It can on a CPU in float32 or float64, unless something looks into the modules it passes over (autocast, a compiler,
    an exporter, hooks), or a gradient is wanted with fixed statistics.
    """
    x = states[0]
    if kernels == "portable" or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return False
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or _jit.is_tracing():
        return False
    if not training and torch.is_grad_enabled():
        return False
    if gatherer() is not None and training:
        return False  # it normalises within one process
    if x.shape[0] * x.shape[2] * x.shape[3] < 8 or any(conv._forward_hooks for conv in cell.convolutions):
        return False  # (a norm over a single pixel is an error that torch words better)
    return kernel.available()


def run_native(
    cell: NativeCell, states: list[Tensor], mixture: Tensor, training: bool, keep: Tensor | None = None
) -> Tensor:
    """Returns the cell's output; in training its norms' running statistics move as BatchNorm moves them.

    Args:
        cell: From `native_cell`.
        states: The inputs after their preprocessing.
        mixture: Flat weights of the branches.
        training: Normalise by the batch, else by the running statistics.
        keep: (rows, n) bool, see `kernels.cell.mixed_cell`.
    """
    weights = [conv.weight for conv in cell.convolutions]
    affine = [tensor for norm in cell.norms for tensor in (norm.weight, norm.bias)] if cell.affine else []
    means = [norm.running_mean for norm in cell.norms]
    variances = [norm.running_var for norm in cell.norms]
    fixed = None
    if not training and means:
        fixed = torch.stack([torch.stack(means), torch.stack(variances)], 1)
    out, stats = kernel.mixed_cell(states, mixture, weights, affine, keep, fixed, cell.numbers)
    if training and means:
        with torch.no_grad():
            count = len(out) * out.shape[2] * out.shape[3]
            torch._foreach_lerp_(means, list(stats[:, 0].unbind()), MOMENTUM)
            torch._foreach_lerp_(variances, list((stats[:, 1] * (count / (count - 1))).unbind()), MOMENTUM)
            if cell.affine:
                torch._foreach_add_([norm.num_batches_tracked for norm in cell.norms], 1)
    return out
