"""The search for cells as a bilevel problem (`search.problem`): losses of a supernet on two splits of the images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as f

from nas_moreau.architecture import SearchSpace, Supernet
from nas_moreau.architecture.networks.mixed_cell import Active
from nas_moreau.search.problem import Posed, beta_term, pose
from nas_moreau.training.device import autocast


class Batch(NamedTuple):
    """The data on which an objective is evaluated.

    Attributes:
        images: (n, channels, height, width).
        labels: (n,).
        progress: Completed fraction of the search, 0..1 (it ramps the beta term and temperatures).
        seed: Seed of the random draws of a method for this batch.
    """

    images: Tensor
    labels: Tensor
    progress: float
    seed: int = 0


class Mixing(NamedTuple):
    """The weights of the operations of a supernet.

    Attributes:
        weights: (edges, operations) for every cell, in the order of the space.
        active: For every cell and edge the numbers of the operations to compute; None for all.
    """

    weights: list[Tensor]
    active: list[Active] | None = None

    def by_cell(self, space: SearchSpace) -> tuple[dict[str, Tensor], dict[str, Active] | None]:
        """Returns both by the name of the cell, as `Supernet.forward` takes them."""
        active = None if self.active is None else dict(zip(space.cells, self.active))
        return dict(zip(space.cells, self.weights)), active


Mix = Callable[[SearchSpace, list[Tensor], Batch], Mixing]
"""(space, logits of every cell, batch) -> the mixing weights on this batch, instead of the softmax."""


class BatchStats(NamedTuple):
    """Auxiliary outputs of F and f: number of correct predictions, and cross-entropy without regularisation."""

    correct: Tensor
    loss: Tensor


def correct_count(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the number of correct predictions, as a tensor on the device (no synchronisation)."""
    return (logits.argmax(-1) == labels).sum()


def supernet_problem(
    supernet: Supernet,
    beta: float = 0.0,
    precision: str = "float32",
    transform: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] = lambda forward: forward,
    mix: Mix | None = None,
    penalty: Callable[[list[Tensor]], Tensor] | None = None,
) -> Posed:
    """Returns the bilevel problem of a search with `supernet`.

    Args:
        supernet: Its alphas are x, its other parameters y (both as detached lists); its buffers follow f at y.
        beta: Weight of the beta-DARTS term in F, reached linearly at the end of the search.
        precision: "float32" or "bfloat16" (autocast).
        transform: Applied to the forward function (torch.compile, for example), but not where `mix` chooses the
            operations to compute: each choice would be compiled separately.
        mix: Computes the mixing weights from the alphas; None for their softmax.
        penalty: Added to F: a function of the logits of every cell.
    """
    alpha_names = [f"alphas.{name}" for name in supernet.alphas]
    weight_names = list(supernet.named_weights())

    def plain(tensors: dict[str, Tensor], images: Tensor, *mixing: Any) -> Tensor:
        return functional_call(supernet, tensors, (images, *mixing))

    forward = transform(plain)
    device_type = supernet.classifier.weight.device.type

    def loss(x: list[Tensor], y: list[Tensor], batch: Batch, buffers: dict[str, Tensor]) -> tuple[Tensor, BatchStats]:
        tensors = {**dict(zip(alpha_names, x)), **dict(zip(weight_names, y)), **buffers}
        with autocast(device_type, precision):
            if mix is None:
                logits = forward(tensors, batch.images)
            else:
                mixing = mix(supernet.space, supernet.operation_logits(x), batch)
                run = forward if mixing.active is None else plain
                logits = run(tensors, batch.images, *mixing.by_cell(supernet.space))
        logits = logits if logits.dtype == torch.float64 else logits.float()
        value = f.cross_entropy(logits, batch.labels)
        return value, BatchStats(correct_count(logits, batch.labels), value)

    def added(x: list[Tensor], batch: Batch) -> list[Tensor]:
        if not beta and penalty is None:
            return []
        logits = supernet.operation_logits(x)
        terms = [beta * batch.progress * beta_term(logits)] if beta else []
        return terms if penalty is None else [*terms, penalty(logits)]

    return pose(
        loss,
        [p.detach().clone() for p in supernet.alphas.values()],
        [p.detach().clone(memory_format=torch.preserve_format) for p in supernet.weights()],
        dict(supernet.named_buffers()),
        added,
    )


@torch.no_grad()
def write_back(supernet: Supernet, x: list[Tensor], y: list[Tensor]) -> None:
    """Copies x and y into the supernet's parameters."""
    for parameter, value in zip([*supernet.alphas.values(), *supernet.weights()], [*x, *y]):
        parameter.copy_(value)
