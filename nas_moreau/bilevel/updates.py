"""Update rules: what is done with a direction. Each is a pair of functions, init(params) and apply(direction, ...).

The method says where to go (d_x, d_y, d_theta); momentum, Adam, weight decay and clipping act on that. Projection
and prox come after. States are NamedTuples of lists of tensors and numbers. Inputs are never modified.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from nas_moreau.bilevel.tensors import Tensors, add, norm, scale, subtract


class Update(NamedTuple):
    """init(params) -> state; apply(direction, step, params, state) -> (params, state)."""

    init: Callable[[Tensors], Any]
    apply: Callable[[Tensors, float, Tensors, Any], tuple[Tensors, Any]]
    finds_length: bool = False
    """Whether the rule finds the length of its steps; `step` is then a factor, 1 where nothing else is known."""


def gradient_descent() -> Update:
    """Returns the rule params - step * direction.

    Example:
        >>> import torch
        >>> rule = gradient_descent()
        >>> rule.apply([torch.tensor(2.0)], 0.5, [torch.tensor(3.0)], rule.init([]))[0]
        [tensor(2.)]
    """
    return Update(lambda params: (), lambda direction, step, params, state: (add(params, direction, -step), state))


class SGDState(NamedTuple):
    """Momentum buffers; empty before the first step."""

    buffers: Tensors


def sgd(momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False, clip: float | None = None) -> Update:
    """Returns SGD as torch.optim.SGD does it.

    Args:
        momentum: Share of the last steps that goes on.
        weight_decay: That many times the parameters is added to the direction.
        nesterov: Look ahead along the momentum.
        clip: Largest norm of the whole direction, before the decay; None for any.
    """

    def apply(direction: Tensors, step: float, params: Tensors, state: SGDState) -> tuple[Tensors, SGDState]:
        if clip is not None:
            factor = torch.clamp(clip / (norm(direction) + 1e-6), max=1.0)
            direction = list(torch._foreach_mul(direction, factor))
        if weight_decay:
            direction = add(direction, params, weight_decay)
        buffers: Tensors = []
        if momentum:
            buffers = add(scale(state.buffers, momentum), direction) if state.buffers else direction
            direction = add(direction, buffers, momentum) if nesterov else buffers
        return add(params, direction, -step), SGDState(buffers)

    return Update(lambda params: SGDState([]), apply)


class AdamState(NamedTuple):
    """First and second moments, and the number of steps done."""

    first: Tensors
    second: Tensors
    steps: int


def adam(betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0) -> Update:
    """Returns Adam as torch.optim.Adam does it.

    Args:
        betas: Decay of the first and the second moment, a step.
        eps: Added to the root of the second moment.
        weight_decay: That many times the parameters is added to the direction.
    """
    b1, b2 = betas

    def init(params: Tensors) -> AdamState:
        return AdamState([torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params], 0)

    def apply(direction: Tensors, step: float, params: Tensors, state: AdamState) -> tuple[Tensors, AdamState]:
        if weight_decay:
            direction = add(direction, params, weight_decay)
        steps = state.steps + 1
        first = add(scale(state.first, b1), direction, 1 - b1)
        second = add(scale(state.second, b2), list(torch._foreach_mul(direction, direction)), 1 - b2)
        denominator = torch._foreach_sqrt(second)
        torch._foreach_div_(denominator, math.sqrt(1 - b2**steps))
        torch._foreach_add_(denominator, eps)
        moved = torch._foreach_addcdiv(params, first, denominator, -step / (1 - b1**steps))
        return list(moved), AdamState(first, second, steps)

    return Update(init, apply)


class DistanceState(NamedTuple):
    """What is known of each tensor.

    Attributes:
        start: Where it began.
        distances: Its greatest root mean square distance from there so far.
        squares: Sums of squares of its entries' directions.
        average: The average direction.
        steps: Done.
    """

    start: Tensors
    distances: Tensors
    squares: Tensors
    average: Tensors
    steps: int


def distance_over_gradients(first: float = 0.01, momentum: float = 0.9) -> Update:
    """Returns a rule that needs no step size.

    Each entry of a tensor moves by

        - r_k m_k / sqrt(sum_{i<=k} g_i^2),    r_k = max(first, max_{i<=k} rms(x_i - x_0))

    with r_k one number for each tensor, and m_k the running average of the g_i as in Adam. This is AdaGrad (Duchi,
    Hazan and Singer, JMLR 2011) with the length of DoG (Ivgi, Hinder and Carmon, ICML 2023): the distance that was
    needed so far. `step` multiplies it.

    Args:
        first: r_0; what it is matters little, since r grows by itself.
        momentum: Of the average; 0 for g_k itself.
    """

    def init(params: Tensors) -> DistanceState:
        lengths = [torch.full((), first, dtype=p.dtype, device=p.device) for p in params]
        zeros = [torch.zeros_like(p) for p in params]
        return DistanceState([p.detach() for p in params], lengths, zeros, zeros, 0)

    def apply(direction: Tensors, step: float, params: Tensors, state: DistanceState) -> tuple[Tensors, DistanceState]:
        steps = state.steps + 1
        moved = torch._foreach_norm(subtract(params, state.start))
        distances = [torch.maximum(r, m / math.sqrt(p.numel())) for r, m, p in zip(state.distances, moved, params)]
        squares = add(state.squares, list(torch._foreach_mul(direction, direction)))
        average = add(scale(state.average, momentum), direction, 1 - momentum)
        length = step / (1 - momentum**steps)
        new = [
            p - length * r * m / s.sqrt().clamp(min=torch.finfo(s.dtype).tiny)
            for p, r, m, s in zip(params, distances, average, squares)
        ]
        return new, DistanceState(state.start, distances, squares, average, steps)

    return Update(init, apply, True)
