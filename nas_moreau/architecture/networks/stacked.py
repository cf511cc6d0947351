"""All candidates of one kind on all edges that leave one state, as one wide operation.

The edges that leave a state start from the same tensor. Its copies side by side, as channels, go through one depthwise
convolution, one grouped 1x1 convolution and one BatchNorm for all edges; every channel is computed as it would be
alone. So a cell's calls grow with its states, not with its edges, and each has more to do.

Dilated convolutions are computed as plain ones, which are faster in libraries:

* Stride 2 and dilation 2 read every second pixel only: a plain convolution of the image without the others.
* Dilation d and stride 1 treat the d x d sublattices of the image separately: a plain convolution of d x d smaller
  images, which are put together again after the norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from nas_moreau.architecture.networks.batch_norm import batch_norm
from nas_moreau.architecture.networks.depthwise import depthwise
from nas_moreau.architecture.networks.operations import Operation, PlainBatchNorm, halved

STACKABLE = ("separable", "dilated", "pair", "convolution")
"""Kinds of operations that have a wide form."""
_LANES = 16  # a CPU's grouped 1x1 convolution is fast if the channels of a group are a multiple of this


class Stack(NamedTuple):
    """Equal operations of several edges: layer by layer, the modules of all edges."""

    kind: str
    stride: int
    dilation: int
    convolutions: list[tuple[nn.Conv2d, ...]]
    norms: list[tuple[PlainBatchNorm, ...]]


def stack_of(operations: Sequence[Operation]) -> Stack | None:
    """Returns the stack of `operations` (equal but for their weights), or None if their kind has no wide form."""
    first = operations[0]
    norms = list(zip(*(operation.norms() for operation in operations)))
    if first.kind not in STACKABLE or not all(type(norm) is PlainBatchNorm for layer in norms for norm in layer):
        return None
    convolutions = list(zip(*(operation.convolutions() for operation in operations)))
    return Stack(first.kind, first.stride, first.dilation, convolutions, norms)


def has_hooks(stack: Stack) -> bool:
    """Whether a convolution of the stack has forward hooks, so that each must be called by itself."""
    return any(conv._forward_hooks for layer in stack.convolutions for conv in layer)


class Copies:
    """The ReLU of one state, side by side for `edges` edges, made at first use and shared by all stacks.

    Args:
        state: (n, channels, height, width).
        edges: Number of edges that leave it.
    """

    def __init__(self, state: Tensor, edges: int):
        self.state, self.edges = state, edges
        self._relu: Tensor | None = None
        self._wide: dict[tuple[int, int], Tensor] = {}

    def relu(self) -> Tensor:
        """Returns the state's ReLU."""
        if self._relu is None:
            self._relu = f.relu(self.state)
        return self._relu

    def wide(self, step: int, lattices: int) -> Tensor:
        """Returns every `step`-th pixel of the copies, each sublattice as a separate image."""
        key = (step, lattices)
        if key not in self._wide:
            x = self.relu()[:, :, ::step, ::step]
            if lattices > 1 or self.edges > 1 or step > 1:
                x = _spread(x, self.edges, lattices)
            self._wide[key] = x
        return self._wide[key]


def _spread(x: Tensor, edges: int, lattices: int) -> Tensor:
    """Returns copies of x side by side as channels, its sublattices one after another as images."""
    n, channels, height, width = x.shape
    d = lattices
    pixels = x.permute(0, 2, 3, 1).reshape(n, height // d, d, width // d, d, channels).permute(2, 4, 0, 1, 3, 5)
    copies = pixels.unsqueeze(5).expand(-1, -1, -1, -1, -1, edges, -1)
    return copies.reshape(d * d * n, height // d, width // d, edges * channels).permute(0, 3, 1, 2)


def gather_lattices(x: Tensor, lattices: int) -> Tensor:
    """Returns the images from their sublattices, as `Copies.wide` separated them."""
    d = lattices
    n, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(d, d, n // (d * d), height, width, channels).permute(2, 3, 0, 4, 1, 5)
    return pixels.reshape(n // (d * d), d * height, d * width, channels).permute(0, 3, 1, 2)


class Gathered(NamedTuple):
    """The tensors of a stack: those of all its edges, layer by layer, one after another in one tensor."""

    weights: list[Tensor]
    means: list[Tensor]
    variances: list[Tensor]


def gather(stacks: Sequence[Stack]) -> list[Gathered]:
    """Returns the weights and running statistics of every stack, copied in a few calls for all of them."""
    weights = _wide([[conv.weight for conv in layer] for stack in stacks for layer in stack.convolutions])
    means = _wide([[norm.running_mean for norm in layer] for stack in stacks for layer in stack.norms])
    variances = _wide([[norm.running_var for norm in layer] for stack in stacks for layer in stack.norms])

    def own(tensors: Iterator[Tensor], layers: Sequence[Any]) -> list[Tensor]:
        return list(islice(tensors, len(layers)))

    return [Gathered(own(weights, s.convolutions), own(means, s.norms), own(variances, s.norms)) for s in stacks]


def _wide(layers: list[list[Tensor]]) -> Iterator[Tensor]:
    """Returns the tensors of each layer in one, along their first dimension; those of equal forms share a call."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, layer in enumerate(layers):
        alike.setdefault(tuple(layer[0].shape[1:]), []).append(i)
    found: dict[int, Tensor] = {}
    for numbers in alike.values():
        whole = torch.cat([tensor for i in numbers for tensor in layers[i]])
        found |= zip(numbers, whole.split([sum(map(len, layers[i])) for i in numbers]))
    return iter([found[i] for i in range(len(layers))])


def keep_statistics(stacks: Sequence[Stack], gathered: Sequence[Gathered]) -> None:
    """Copies the running statistics, which training has moved, back to the norms of every edge."""
    kept: list[Tensor] = []
    found: list[Tensor] = []
    for stack, tensors in zip(stacks, gathered):
        for layer, mean, variance in zip(stack.norms, tensors.means, tensors.variances):
            kept += [*(norm.running_mean for norm in layer), *(norm.running_var for norm in layer)]
            size = len(layer[0].running_mean)
            found += [*mean.split(size), *variance.split(size)]
    if kept:
        with torch.no_grad():
            torch._foreach_copy_(kept, found)


def run_stack(stack: Stack, tensors: Gathered, copies: Copies, scale: Tensor, training: bool) -> tuple[Tensor, int]:
    """Returns the stack's output, edges side by side as channels, and the number of its separate sublattices (1: none).

    Args:
        stack: From `stack_of`.
        tensors: From `gather`; training moves the statistics.
        copies: The copies of the state that its edges leave.
        scale: (edges * channels,), the weight of each edge for each of its channels.
        training: Normalise by the batch, else by the running statistics.
    """
    weights, means, variances = tensors

    def norm(x: Tensor, number: int, scale: Tensor | None) -> Tensor:
        return batch_norm(x, means[number], variances[number], scale, None, training)

    if stack.kind in ("separable", "dilated"):
        step = stack.stride if stack.dilation % stack.stride == 0 else 1
        stride, dilation = stack.stride // step, stack.dilation // step
        sides = [(side + step - 1) // step for side in copies.state.shape[-2:]]
        # (with a stride above 1 sublattices save nothing)
        lattices = dilation if stride == 1 and all(side % dilation == 0 for side in sides) else 1
        x = depthwise(copies.wide(step, lattices), weights[0], stride, dilation // lattices)
        x = _pointwise(x, stack.convolutions[1], weights[1])
        if stack.kind == "separable":
            x = norm(x, 0, None).relu_()
            if lattices > 1:
                x, lattices = gather_lattices(x, lattices), 1
            x = _pointwise(depthwise(x, weights[2]), stack.convolutions[3], weights[3])
        return norm(x, -1, scale), lattices
    x = copies.relu()
    if stack.kind == "pair":
        x = _pair(x, weights, copies.edges)
    else:
        size = weights[0].shape[-1]
        x = f.conv2d(x, weights[0], None, stack.stride, stack.dilation * (size // 2), stack.dilation)
    return norm(x, -1, scale), 1


def _pointwise(x: Tensor, layer: tuple[nn.Conv2d, ...], weight: Tensor) -> Tensor:
    """Returns the 1x1 convolutions of all edges, each on its channels."""
    edges, channels = len(layer), weight.shape[1]
    if edges > 1 and x.device.type == "cpu" and channels % _LANES and channels < _LANES:
        return f.conv2d(x, torch.block_diag(*weight.flatten(1).split(channels))[:, :, None, None])
    return f.conv2d(x, weight, groups=edges)


def _pair(x: Tensor, weights: list[Tensor], edges: int) -> Tensor:
    """Returns the two strided 1x1 convolutions of every edge, an edge's two results beside each other."""
    height, width = x.shape[-2:]
    shifted = f.pad(x, (0, width % 2, 0, height % 2))[:, :, 1:, 1:]
    halves = [halved(part, weight, weight.shape[1]) for part, weight in zip((x, shifted), weights)]
    pixels = [half.permute(0, 2, 3, 1).unflatten(3, (edges, -1)) for half in halves]
    return torch.cat(pixels, 4).flatten(3).permute(0, 3, 1, 2)
