"""Cells on the native operator: which operations it can run, the plan of a cell, and the call.

A cell with one operation that the operator does not know, such as a user's own, stays on the portable path as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nas_moreau.architecture.networks.batch_shard import gatherer
from nas_moreau.architecture.networks.operations import Operation, PlainBatchNorm
from nas_moreau.architecture.spaces.skeletons import NetworkPart
from nas_moreau.errors import InputError, unknown
from nas_moreau.kernels import cell as kernel
from nas_moreau.kernels.cell import Branch

KERNELS = ("auto", "portable", "native")
MOMENTUM = 0.1
_jit: Any = torch.jit  # its types leave is_tracing out


class NativeCell(NamedTuple):
    """The plan of one cell and the modules whose tensors it reads at every call."""

    numbers: list[int]
    convolutions: list[nn.Conv2d]
    norms: list[Any]  # PlainBatchNorm, or BatchNorm2d with running statistics
    affine: bool


def check_kernels(kernels: str) -> str:
    """Returns `kernels`; raises InputError if the value is unknown or native kernels are unavailable."""
    if kernels not in KERNELS:
        raise unknown("value of kernels", kernels, KERNELS)
    if kernels == "native" and not kernel.available():
        raise InputError("Native kernels are not available on this machine.", "Set kernels to auto or portable.")
    return kernels


def _norms_fit(norms: Iterable[nn.Module]) -> bool:
    return all(
        isinstance(norm, PlainBatchNorm)
        or (isinstance(norm, nn.BatchNorm2d) and norm.affine and norm.momentum == MOMENTUM and norm.eps == 1e-5)
        for norm in norms
    )


def kernel_kind(operation: Operation) -> int | None:
    """Returns the native operator's number for the kind of an operation; None if it does not know the operation."""
    kinds = {
        "identity": kernel.SKIP,
        "pair": kernel.PAIR,
        "max_pool": kernel.LARGEST,
        "avg_pool": kernel.AVERAGE,
        "separable": kernel.DOUBLE,
        "dilated": kernel.SINGLE,
        "convolution": kernel.POINT if operation.kernel == 1 else kernel.DENSE,
    }
    return kinds.get(operation.kind) if _norms_fit(operation.norms()) else None


class CellEdge(NamedTuple):
    """An operation on an edge of a cell.

    Attributes:
        source: State that the edge leaves.
        target: Node that it enters.
        weight: Place of the operation's weight in the flat mixture.
        operation: The operation; one may stand on several edges.
    """

    source: int
    target: int
    weight: int
    operation: Operation


def native_cell(
    part: NetworkPart, nodes: int, concat: tuple[int, ...], edges: Iterable[CellEdge], *, droppable: bool = False
) -> NativeCell | None:
    """Returns the plan of a cell, or None if it holds something the native operator does not know.

    Args:
        part: Number of input states, channels of every state, and the stride of the edges that leave an input.
        nodes: Number of nodes.
        concat: States in the output, ascending.
        edges: The operations of the cell.
        droppable: Every operation but identities has a row in `keep`.
    """
    inputs, channels, halves = len(part.reads), part.channels, part.stride == 2
    if min(concat) < inputs or list(concat) != sorted(set(concat)) or channels < 2:
        return None
    convolutions: list[nn.Conv2d] = []
    norms: list[Any] = []
    slots: dict[int, int] = {}
    branches, rows = [], 0
    for edge in edges:
        operation, kind = edge.operation, kernel_kind(edge.operation)
        if kind is None:
            return None
        slot, own = -1, operation.norms()
        if own:
            # a pool that several edges share has one norm
            slot = slots.setdefault(id(own[0]), len(norms))
            if slot == len(norms):
                norms.extend(own)
        mask = -1
        if droppable and not operation.is_identity:
            mask, rows = rows, rows + 1
        branches.append(
            Branch(
                kind,
                edge.source,
                edge.target,
                edge.weight,
                kernel=operation.kernel,
                dilation=operation.dilation,
                weight=len(convolutions),
                slot=slot,
                mask=mask,
            )
        )
        convolutions.extend(operation.convolutions())
    affine = {isinstance(norm, nn.BatchNorm2d) for norm in norms}
    if len(affine) > 1:
        return None
    places = [concat.index(inputs + i) if inputs + i in concat else -1 for i in range(nodes)]
    numbers = kernel.cell_numbers(inputs, channels, halves, len(norms), places, branches)
    return NativeCell(numbers, convolutions, norms, affine == {True})


def usable(cell: NativeCell, kernels: str, states: list[Tensor], training: bool) -> bool:
    """Returns whether the native operator can run this call.

    It can on a CPU in float32 or float64, unless the modules that it bypasses are needed (by autocast, a compiler, an
    exporter, hooks), or a gradient with fixed statistics is.
    """
    x = states[0]
    if kernels == "portable" or not isinstance(x, Tensor):  # a symbolic trace hands in something else
        return False
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return False
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or _jit.is_tracing():
        return False
    if not training and torch.is_grad_enabled():
        return False
    if gatherer() is not None and training:
        return False  # the operator normalises within one process
    if x.shape[0] * x.shape[2] * x.shape[3] < 8 or any(conv._forward_hooks for conv in cell.convolutions):
        return False  # (a norm over a single pixel is an error, for which torch has the better message)
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
