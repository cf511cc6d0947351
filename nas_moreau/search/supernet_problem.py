"""The search as a bilevel problem: x are the alphas, y the weights, F and f the losses on two splits of the images.

y and theta are two lists of tensors used with one module by functional calls. Each evaluates BatchNorm by the
statistics of its batch; what differs is which running statistics move:

    f at y        the module's own, which evaluation uses
    f at theta    theta's
    F             a scratch copy that nobody reads: a pass on the architecture split leaves no trace in the weights'
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as f

from nas_moreau import distributed
from nas_moreau.architecture import SearchSpace, Supernet
from nas_moreau.architecture.networks.mixed_cell import Active
from nas_moreau.bilevel import Bilevel, Sharded
from nas_moreau.training.device import autocast


class Batch(NamedTuple):
    """What a loss is evaluated on.

    Attributes:
        images: (n, channels, height, width).
        labels: (n,).
        progress: Share of the search done, 0..1 (it ramps the beta term and temperatures).
        seed: Seed of a method's draws for this batch: the same batch always brings the same draws.
    """

    images: Tensor
    labels: Tensor
    progress: float
    seed: int = 0


class Mixing(NamedTuple):
    """Mixing weights, (edges, operations) for every cell, and which operations to compute (all where None)."""

    weights: list[Tensor]
    active: list[Active] | None = None


Mix = Callable[[SearchSpace, list[Tensor], Batch], Mixing]
"""From the logits of every cell to what takes the place of their softmax on this batch."""


class Fit(NamedTuple):
    """Auxiliary outputs of F and f: number of correct predictions, and cross-entropy without the other terms of F."""

    correct: Tensor
    loss: Tensor


class SupernetProblem(NamedTuple):
    """The problem, its start, and the buffers that theta moves."""

    problem: Bilevel
    x: list[Tensor]
    y: list[Tensor]
    theta_buffers: dict[str, Tensor]


def beta_term(alphas: list[Tensor]) -> Tensor:
    """Returns the mean of logsumexp(alpha) over all edges, beta-DARTS' regulariser (Ye et al., CVPR 2022, eq. 13)."""
    return torch.cat([torch.logsumexp(logits, -1) for logits in alphas]).mean()


def correct_count(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns how many of a batch are classified rightly, on the device (no synchronisation)."""
    return (logits.argmax(-1) == labels).sum()


def supernet_problem(
    supernet: Supernet,
    beta: float = 0.0,
    precision: str = "float32",
    transform: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] = lambda forward: forward,
    mix: Mix | None = None,
    penalty: Callable[[list[Tensor]], Tensor] | None = None,
) -> SupernetProblem:
    """Returns the bilevel problem of a search with `supernet`.

    Args:
        supernet: Its alphas are x, its other parameters y (both as detached lists); its buffers follow f at y.
        beta: Weight of the beta-DARTS term in F, reached linearly at the end of the search.
        precision: "float32" or "bfloat16" (autocast).
        transform: Applied to the forward function (torch.compile, for example); not where `mix` names the operations
            to compute, for each choice would be another function.
        mix: How the alphas become mixing weights; their softmax where there is none.
        penalty: Added to F: a function of the logits of every cell.
    """
    cells = supernet.space.cells
    alpha_names = [f"alphas.{name}" for name in supernet.alphas]
    weight_names = list(supernet.named_weights())
    own = dict(supernet.named_buffers())
    theta_buffers = {name: buffer.clone() for name, buffer in own.items()}
    scratch = {name: buffer.clone() for name, buffer in own.items()}

    def plain(tensors: dict[str, Tensor], images: Tensor, *mixing: Any) -> Tensor:
        return functional_call(supernet, tensors, (images, *mixing))

    forward = transform(plain)
    device_type = supernet.classifier.weight.device.type

    def loss(x: list[Tensor], y: list[Tensor], batch: Batch, buffers: dict[str, Tensor]) -> tuple[Tensor, Fit]:
        tensors = {**dict(zip(alpha_names, x)), **dict(zip(weight_names, y)), **buffers}
        with autocast(device_type, precision):
            if mix is None:
                logits = forward(tensors, batch.images)
            else:
                weights, active = mix(supernet.space, supernet.operation_logits(x), batch)
                run = forward if active is None else plain
                logits = run(tensors, batch.images, dict(zip(cells, weights)), active and dict(zip(cells, active)))
        logits = logits if logits.dtype == torch.float64 else logits.float()
        value = f.cross_entropy(logits, batch.labels)
        return value, Fit(correct_count(logits, batch.labels), value)

    def upper(x: list[Tensor], y: list[Tensor], batch: Batch) -> tuple[Tensor, Fit]:
        value, fit = loss(x, y, batch, scratch)
        if beta:
            value = value + beta * batch.progress * beta_term(supernet.operation_logits(x))
        if penalty is not None:
            value = value + penalty(supernet.operation_logits(x))
        return value, fit

    def lower(x: list[Tensor], y: list[Tensor], batch: Batch) -> tuple[Tensor, Fit]:
        return loss(x, y, batch, own)

    def lower_at_theta(x: list[Tensor], theta: list[Tensor], batch: Batch) -> tuple[Tensor, Fit]:
        return loss(x, theta, batch, theta_buffers)

    return SupernetProblem(
        Bilevel(_shared(upper, {}), _shared(lower, own), f_theta=_shared(lower_at_theta, theta_buffers)),
        [p.detach().clone() for p in supernet.alphas.values()],
        [p.detach().clone(memory_format=torch.preserve_format) for p in supernet.weights()],
        theta_buffers,
    )


def _shared(objective: Callable[..., Any], moved: dict[str, Tensor]) -> Any:
    """Returns a loss on this process's share of a batch as one on the whole: a mean, its count of right answers a sum.

    One flat all-reduce an evaluation. The running statistics in `moved` become the means of those of all processes.
    """
    if distributed.world_size() == 1:
        return objective
    buffers = [buffer for buffer in moved.values() if buffer.is_floating_point()]

    def reduce(value: Tensor, gradients: list[Tensor], fit: Fit) -> tuple[Tensor, list[Tensor], Fit]:
        numbers = [value, fit.loss, fit.correct.to(value.dtype)]
        value, loss, count, *rest = distributed.all_reduce_mean([*numbers, *gradients, *buffers])
        if buffers:
            torch._foreach_copy_(buffers, rest[len(gradients) :])
        count = (count * distributed.world_size()).round().to(fit.correct.dtype)
        return value, rest[: len(gradients)], Fit(count, loss)

    return Sharded(objective, reduce)


@torch.no_grad()
def write_back(supernet: Supernet, x: list[Tensor], y: list[Tensor]) -> None:
    """Copies x and y into the supernet's parameters."""
    for parameter, value in zip([*supernet.alphas.values(), *supernet.weights()], [*x, *y]):
        parameter.copy_(value)
