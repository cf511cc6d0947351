"""The bilevel problem of a search, whatever is searched: x are the alphas, y the weights, F and f losses on two splits.

y and theta are two lists of tensors used with one module by functional calls. Each evaluates BatchNorm by the
statistics of its batch; what differs is which running statistics move:

    f at y        the module's own, which evaluation uses
    f at theta    a copy for theta
    F             a scratch copy that is not read: the architecture split does not influence the statistics of y
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas_moreau import distributed
from nas_moreau.bilevel import Bilevel, Sharded

Buffers = dict[str, Tensor]
Loss = Callable[[list[Tensor], list[Tensor], Any, Buffers], tuple[Tensor, Any]]
"""(x, y, batch, buffers to move) -> the loss, and a NamedTuple of 0-dim tensors: means over the batch as floating-point
numbers, counts as integers."""


class Posed(NamedTuple):
    """The problem, its start, and the buffers that theta moves."""

    problem: Bilevel
    x: list[Tensor]
    y: list[Tensor]
    theta_buffers: Buffers


def pose(
    loss: Loss,
    x: list[Tensor],
    y: list[Tensor],
    own: Buffers,
    added: Callable[[list[Tensor], Any], list[Tensor]],
    scalarised: Callable[[Tensor, list[Tensor]], Tensor] | None = None,
    *,
    are_read: bool = False,
) -> Posed:
    """Returns the bilevel problem of a search.

    Args:
        loss: Evaluates the module.
        x: The alphas to start with.
        y: The weights to start with.
        own: The module's buffers, which f moves.
        added: (x, batch) -> terms that F adds to the loss.
        scalarised: (the loss with these terms, x) -> F.
        are_read: Whether a loss may depend on the buffers, which those of BatchNorm in training mode do not: F then
            reads those of y.
    """
    theta_buffers = {name: buffer.clone() for name, buffer in own.items()}
    scratch = {name: buffer.clone() for name, buffer in own.items()}

    def upper(x: list[Tensor], y: list[Tensor], batch: Any) -> tuple[Tensor, Any]:
        if are_read and scratch:
            torch._foreach_copy_(list(scratch.values()), list(own.values()))
        value, stats = loss(x, y, batch, scratch)
        for term in added(x, batch):
            value = value + term
        return value if scalarised is None else scalarised(value, x), stats

    def lower(x: list[Tensor], y: list[Tensor], batch: Any) -> tuple[Tensor, Any]:
        return loss(x, y, batch, own)

    def lower_at_theta(x: list[Tensor], theta: list[Tensor], batch: Any) -> tuple[Tensor, Any]:
        return loss(x, theta, batch, theta_buffers)

    return Posed(
        Bilevel(_sharded(upper, {}), _sharded(lower, own), f_theta=_sharded(lower_at_theta, theta_buffers)),
        x,
        y,
        theta_buffers,
    )


def beta_term(alphas: list[Tensor]) -> Tensor:
    """Returns the mean of logsumexp(alpha) over all edges, beta-DARTS' regulariser (Ye et al., CVPR 2022, eq. 13)."""
    return torch.cat([torch.logsumexp(logits, -1) for logits in alphas]).mean()


def _sharded(objective: Callable[..., Any], moved: Buffers) -> Any:
    """Returns the objective on the whole batch from one on this process's shard: means, and the sums of the counts.

    One flat all-reduce per evaluation. The running statistics in `moved` become their means over all processes.
    """
    if distributed.world_size() == 1:
        return objective
    buffers = [buffer for buffer in moved.values() if buffer.is_floating_point()]

    def reduce(value: Tensor, gradients: list[Tensor], stats: Any) -> tuple[Tensor, list[Tensor], Any]:
        numbers = [value, *(number.to(value.dtype) for number in stats)]
        value, *rest = distributed.all_reduce_mean([*numbers, *gradients, *buffers])
        means, rest = rest[: len(stats)], rest[len(stats) :]
        if buffers:
            torch._foreach_copy_(buffers, rest[len(gradients) :])
        whole = [
            mean if number.is_floating_point() else (mean * distributed.world_size()).round().to(number.dtype)
            for mean, number in zip(means, stats)
        ]
        return value, rest[: len(gradients)], type(stats)(*whole)

    return Sharded(objective, reduce)
