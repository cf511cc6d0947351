"""A whole cell as one native operator: the path of supernets and derived networks on a CPU.

`nas_moreau::mixed_cell` runs all branches of a cell (an operation on an edge is a branch) in C++ and adds them up in
the nodes; `cell.h` and `gradient.h` contain the mathematics. This file adds the operator's gradient and its shape rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas_moreau.kernels.build import load

SKIP, SINGLE, DOUBLE, PAIR, POINT, DENSE, LARGEST, AVERAGE = range(8)  # as in plan.h
_HEADER = 6


class Branch(NamedTuple):
    """One operation on one edge.

    Attributes:
        kind: SKIP, SINGLE (ReLU, depthwise, pointwise, norm), DOUBLE (that twice), PAIR (ReLU, two 1x1 convolutions of
            stride 2, norm), POINT (ReLU, 1x1 convolution, norm), DENSE (ReLU, convolution, norm), LARGEST or AVERAGE
            (3x3 pooling, norm).
        source: State it leaves.
        target: Node it enters.
        alpha: Its place in the flat mixture.
        kernel: Kernel size.
        dilation: Dilation (of the first convolution; a second one has 1).
        weight: Place of its first tensor in the list of weights.
        slot: Place of its first norm in the statistics; -1 for none.
        mask: Its row in `keep`; -1 if it is never dropped.
    """

    kind: int
    source: int
    target: int
    alpha: int
    kernel: int = 1
    dilation: int = 1
    weight: int = 0
    slot: int = -1
    mask: int = -1


def available() -> bool:
    """Returns whether native operators can be used on this machine, compiling them at first use."""
    return _register()


def cell_numbers(
    inputs: int, channels: int, halves: bool, slots: int, places: Sequence[int], branches: Sequence[Branch]
) -> list[int]:
    """Returns a cell's plan as the operator reads it.

    Args:
        inputs: Number of input states.
        channels: Channels of every state.
        halves: Branches that leave an input have stride 2.
        slots: Number of norms.
        places: For every node its position in the concatenated output, or -1.
        branches: All branches, in the order in which a node adds them up.
    """
    header = [inputs, len(places), channels, int(halves), slots, len(branches)]
    return [*header, *places, *(number for branch in branches for number in branch)]


def mixed_cell(
    states: list[Tensor],
    mixture: Tensor,
    weights: list[Tensor],
    affine: list[Tensor],
    keep: Tensor | None,
    statistics: Tensor | None,
    numbers: list[int],
) -> tuple[Tensor, Tensor]:
    """Returns the cell's output and the mean and (biased) variance before each norm, shape (slots, 2, channels).

    Args:
        states: The inputs, (n, channels, height, width), channels last for speed.
        mixture: Weight of every branch, flat.
        weights: Convolution weights in the order of the branches.
        affine: Scale and shift of every norm in turn, or an empty list.
        keep: (rows, n) bool; False leaves a branch out for a sample. None keeps all.
        statistics: Normalise with these instead of the batch's own; such a pass has no gradient.
        numbers: From `cell_numbers`.
    """
    out, _, _, stats = torch.ops.nas_moreau.mixed_cell(states, mixture, weights, affine, keep, statistics, numbers)
    return out, stats


@cache
def _register() -> bool:
    """Gives the compiled operators their gradient and shapes; returns whether there are any."""
    if not load():
        return False
    torch.library.register_fake("nas_moreau::mixed_cell", _fake)
    torch.library.register_fake("nas_moreau::mixed_cell_backward", _fake_backward)
    torch.library.register_autograd("nas_moreau::mixed_cell", _backward, setup_context=_remember)
    return True


def _fake(
    states: list[Tensor],
    mixture: Tensor,
    weights: list[Tensor],
    affine: list[Tensor],
    keep: Tensor | None,
    statistics: Tensor | None,
    numbers: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, nodes, channels, halves, slots, _ = numbers[:_HEADER]
    n, _, height, width = states[0].shape
    if halves:
        height, width = (height + 1) // 2, (width + 1) // 2
    placed = sum(place >= 0 for place in numbers[_HEADER : _HEADER + nodes])
    out = states[0].new_empty((n, placed * channels, height, width)).to(memory_format=torch.channels_last)
    saved, moments = _storage(numbers, n, height * width)
    return (
        out,
        states[0].new_empty(saved),
        states[0].new_empty(moments),
        states[0].new_empty((slots, 2, channels)),
    )


def _storage(numbers: list[int], n: int, area: int) -> tuple[int, int]:
    """Returns the sizes of the two buffers a forward pass leaves, as `Cell::attach` hands them out."""
    nodes, channels = numbers[1], numbers[2]
    width = len(Branch._fields)
    flat = numbers[_HEADER + nodes :]

    saved = sum(n * area * channels for place in numbers[_HEADER : _HEADER + nodes] if place < 0)
    moments, shared = 0, set()
    for at in range(0, len(flat), width):
        branch = Branch(*flat[at : at + width])
        inner = 2 * channels if branch.kind == PAIR else channels
        copies = {SKIP: 0, DOUBLE: 2}.get(branch.kind, 1)
        if branch.kind in (PAIR, POINT, LARGEST, AVERAGE):
            key = (branch.source, branch.kind)
            copies = 0 if key in shared else 1
            shared.add(key)
        spread = inner if branch.kind in (DENSE, LARGEST, AVERAGE) else inner * inner
        saved += copies * n * area * inner
        moments += copies * (inner + spread)
    return saved, moments


def _fake_backward(
    grad: Tensor,
    states: list[Tensor],
    mixture: Tensor,
    weights: list[Tensor],
    affine: list[Tensor],
    keep: Tensor | None,
    out: Tensor,
    saved: Tensor,
    moments: Tensor,
    stats: Tensor,
    numbers: list[int],
    weights_wanted: bool,
) -> list[Tensor]:
    images = [torch.empty_like(x, memory_format=torch.channels_last) for x in states]
    rest = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in [mixture, *weights, *affine]]
    return [*images, *(rest if weights_wanted else rest[:1])]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    states, mixture, weights, affine, keep, statistics, numbers = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.numbers, ctx.counts, ctx.fixed = numbers, (len(states), len(weights), len(affine)), statistics is not None
    # a list argument counts as one input
    ctx.weights_wanted = any(x.requires_grad for x in [*weights, *affine])
    ctx.save_for_backward(*states, mixture, *weights, *affine, *output, *([] if keep is None else [keep]))


def _backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    if ctx.fixed:
        raise RuntimeError("A native cell with fixed statistics has no gradient; use kernels='portable'.")
    n_states, n_weights, n_affine = ctx.counts
    if grad is None:
        return [None] * n_states, None, [None] * n_weights, [None] * n_affine, None, None, None
    tensors = list(ctx.saved_tensors)
    states, tensors = tensors[:n_states], tensors[n_states:]
    mixture, tensors = tensors[0], tensors[1:]
    weights, tensors = tensors[:n_weights], tensors[n_weights:]
    affine, tensors = tensors[:n_affine], tensors[n_affine:]
    keep = tensors[4] if len(tensors) > 4 else None
    grads = torch.ops.nas_moreau.mixed_cell_backward(
        grad, states, mixture, weights, affine, keep, *tensors[:4], ctx.numbers, ctx.weights_wanted
    )
    of_states, of_mixture, rest = grads[:n_states], grads[n_states], grads[n_states + 1 :]
    if not ctx.weights_wanted:
        rest = [None] * (n_weights + n_affine)
    return of_states, of_mixture, rest[:n_weights], rest[n_weights:], None, None, None
