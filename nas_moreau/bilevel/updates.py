"""Update rules: what is done with a direction. Each is a pair of functions, init(params) and apply(direction, ...).

The method says where to go (d_x, d_y, d_theta); momentum, Adam, weight decay and clipping act on that. Projection and
prox come after. A rule is a final step (`gradient_descent`, `adam`, `distance_over_gradients`), alone or behind
transforms of the direction:

    chain(clip(5.0), weight_decay(3e-4), momentum(0.9))         # ends with params - step * direction
    chain(clip(1.0), adam((0.5, 0.999)))

States are NamedTuples of lists of tensors and numbers. Inputs are never modified.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas_moreau.bilevel.tensors import Tensors, add, norm, scale, subtract


class Transform(NamedTuple):
    """A change of the direction before a step is taken along it.

    Attributes:
        name: By which `Update.part` finds it: "clip", "weight_decay", "momentum".
        factor: Its number.
        init: params -> state.
        apply: (direction, params, state) -> (direction, state).
    """

    name: str
    factor: float
    init: Callable[[Tensors], Any]
    apply: Callable[[Tensors, Tensors, Any], tuple[Tensors, Any]]


class Part(NamedTuple):
    """A transform's number and its present state within a chain."""

    factor: float
    state: Any


class Update(NamedTuple):
    """init(params) -> state; apply(direction, step, params, state) -> (params, state).

    Attributes:
        init, apply: The two functions.
        finds_length: Whether the rule finds the length of its steps; `step` is then a factor, 1 if nothing is known.
        rescales: Whether the length of a step does not follow that of the direction, so that no step size can be
            derived from a curvature (Adam).
        transforms: Of a `chain`: those before the final step, in order.
    """

    init: Callable[[Tensors], Any]
    apply: Callable[[Tensors, float, Tensors, Any], tuple[Tensors, Any]]
    finds_length: bool = False
    transforms: tuple[Transform, ...] = ()
    rescales: bool = False

    def part(self, name: str, state: Any) -> Part | None:
        """Returns the first transform of that name, with its state within `state`; None if there is none.

        Example:
            >>> rule = chain(weight_decay(0.1), momentum(0.9))
            >>> rule.part("momentum", rule.init([])), rule.part("clip", rule.init([]))
            (Part(factor=0.9, state=[]), None)
        """
        for transform, own in zip(self.transforms, state.transforms if self.transforms else ()):
            if transform.name == name:
                return Part(transform.factor, own)
        return None


class ChainState(NamedTuple):
    """The states of a chain's transforms, and that of its final step."""

    transforms: tuple[Any, ...]
    final: Any


def chain(*parts: Transform | Update) -> Update:
    """Returns the rule that sends the direction through transforms and takes a final step along the result.

    Args:
        parts: Transforms, and last the rule that takes the step; without one it is params - step * direction.

    Example:
        >>> import torch
        >>> rule = chain(clip(1.0), weight_decay(0.5))
        >>> params = [torch.tensor(2.0)]
        >>> (after,), _ = rule.apply([torch.tensor(3.0)], 1.0, params, rule.init(params))
        >>> round(after.item(), 4)  # 2 - (1 + 0.5 * 2)
        0.0
    """
    transforms = tuple(part for part in parts if isinstance(part, Transform))
    steps = [part for part in parts if isinstance(part, Update)]
    if len(steps) > 1 or (steps and parts[-1] is not steps[0]):
        raise ValueError("A chain has one rule that takes the step, and it is the last part.")
    final = steps[0] if steps else gradient_descent()
    if not transforms:
        return final

    def init(params: Tensors) -> ChainState:
        return ChainState(tuple(transform.init(params) for transform in transforms), final.init(params))

    def apply(direction: Tensors, step: float, params: Tensors, state: ChainState) -> tuple[Tensors, ChainState]:
        states = []
        for transform, own in zip(transforms, state.transforms):
            direction, own = transform.apply(direction, params, own)
            states.append(own)
        params, last = final.apply(direction, step, params, state.final)
        return params, ChainState(tuple(states), last)

    return Update(init, apply, final.finds_length, transforms, final.rescales)


# --- transforms -------------------------------------------------------------------------------------------------------


def clip(largest: float) -> Transform:
    """Returns the transform that shortens a direction to the Euclidean norm `largest`, all tensors taken together."""

    def apply(direction: Tensors, params: Tensors, state: Any) -> tuple[Tensors, Any]:
        factor = torch.clamp(largest / (norm(direction) + 1e-6), max=1.0)
        return list(torch._foreach_mul(direction, factor)), state

    return Transform("clip", largest, lambda params: (), apply)


def weight_decay(factor: float) -> Transform:
    """Returns the transform that adds factor * params to the direction."""
    return Transform(
        "weight_decay",
        factor,
        lambda params: (),
        lambda direction, params, state: (add(direction, params, factor), state),
    )


def momentum(factor: float, nesterov: bool = False) -> Transform:
    """Returns the transform that replaces a direction by b <- factor * b + direction; its state is b.

    b begins as the first direction; the state is an empty list before it.

    Args:
        factor: Share of the previous b.
        nesterov: The direction becomes direction + factor * b instead.
    """

    def apply(direction: Tensors, params: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        buffers = add(scale(state, factor), direction) if state else direction
        return add(direction, buffers, factor) if nesterov else buffers, buffers

    return Transform("momentum", factor, lambda params: [], apply)


def rescale(factor: float) -> Transform:
    """Returns the transform that multiplies the direction.

    Args:
        factor: Positive; at most 1 where the step size is "auto".

    Raises:
        ValueError: The factor is not positive.
    """
    if not factor > 0:
        raise ValueError(f"The factor is {factor}; it must be positive.")
    return Transform(
        "rescale", factor, lambda params: (), lambda direction, params, state: (scale(direction, factor), state)
    )


# --- rules that take the step -----------------------------------------------------------------------------------------


def gradient_descent() -> Update:
    """Returns the rule params - step * direction.

    Example:
        >>> import torch
        >>> rule = gradient_descent()
        >>> rule.apply([torch.tensor(2.0)], 0.5, [torch.tensor(3.0)], rule.init([]))[0]
        [tensor(2.)]
    """
    return Update(lambda params: (), lambda direction, step, params, state: (add(params, direction, -step), state))


def per_tensor(*rules: Update) -> Update:
    """Returns the rule that moves every tensor by a separate rule.

    Example:
        >>> import torch
        >>> rule = per_tensor(gradient_descent(), chain(rescale(0.1), momentum(0.9)))
        >>> x = [torch.tensor(1.0), torch.tensor(1.0)]
        >>> rule.apply([torch.tensor(1.0), torch.tensor(1.0)], 0.5, x, rule.init(x))[0]
        [tensor(0.5000), tensor(0.9500)]

    Args:
        rules: In the order of the tensors of x (or y).

    Raises:
        ValueError: Some rules find the length of their steps and others do not, or (in `init`) there are more or fewer
            rules than tensors.
    """
    if len({rule.finds_length for rule in rules}) > 1:
        raise ValueError("Either all rules find the length of their steps or none; the step size means something else.")

    def init(params: Tensors) -> tuple[Any, ...]:
        if len(params) != len(rules):
            raise ValueError(f"There are {len(rules)} rules for {len(params)} tensors.")
        return tuple(rule.init([p]) for rule, p in zip(rules, params))

    def apply(
        direction: Tensors, step: float, params: Tensors, state: tuple[Any, ...]
    ) -> tuple[Tensors, tuple[Any, ...]]:
        moved = [rule.apply([d], step, [p], own) for rule, d, p, own in zip(rules, direction, params, state)]
        return [new for (new,), _ in moved], tuple(own for _, own in moved)

    return Update(init, apply, rules[0].finds_length, rescales=any(rule.rescales for rule in rules))


def sgd(momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False, clip: float | None = None) -> Update:
    """Returns SGD as torch.optim.SGD does it: the chain of clipping, weight decay and momentum.

    Args:
        momentum: Share of the previous steps that continues.
        weight_decay: That many times the parameters is added to the direction.
        nesterov: Look ahead along the momentum.
        clip: Norm to which the whole direction is clipped, before the decay; None for no clipping.
    """
    return chain(*_transforms(momentum, weight_decay, nesterov=nesterov, largest=clip))


def _transforms(share: float, decay: float, *, nesterov: bool = False, largest: float | None = None) -> list[Transform]:
    """Returns those of clip, weight_decay and momentum that change anything."""
    clipping = [] if largest is None else [clip(largest)]
    decaying = [weight_decay(decay)] if decay else []
    return [*clipping, *decaying, *([momentum(share, nesterov)] if share else [])]


class AdamState(NamedTuple):
    """First and second moments, and the number of steps done, which can be a 0-dim tensor."""

    first: Tensors
    second: Tensors
    steps: int | Tensor


def adam(betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0) -> Update:
    """Returns Adam as torch.optim.Adam does it (Kingma and Ba, ICLR 2015).

    Args:
        betas: Decay of the first and the second moment at each step.
        eps: Added to the root of the second moment.
        weight_decay: That many times the parameters is added to the direction.
    """
    b1, b2 = betas

    def init(params: Tensors) -> AdamState:
        return AdamState([torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params], 0)

    def apply(direction: Tensors, step: float, params: Tensors, state: AdamState) -> tuple[Tensors, AdamState]:
        steps = state.steps + 1
        first = add(scale(state.first, b1), direction, 1 - b1)
        second = add(scale(state.second, b2), list(torch._foreach_mul(direction, direction)), 1 - b2)
        denominator = torch._foreach_sqrt(second)
        if isinstance(steps, Tensor):
            scaled = scale(list(denominator), 1 / (1 - b2**steps).sqrt())
            ratio = torch._foreach_div(first, torch._foreach_add(scaled, eps))
            return add(params, list(ratio), -step / (1 - b1**steps)), AdamState(first, second, steps)
        torch._foreach_div_(denominator, math.sqrt(1 - b2**steps))
        torch._foreach_add_(denominator, eps)
        moved = torch._foreach_addcdiv(params, first, denominator, -step / (1 - b1**steps))
        return list(moved), AdamState(first, second, steps)

    return chain(*_transforms(0.0, weight_decay), Update(init, apply, rescales=True))


def adamw(betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01) -> Update:
    """Returns AdamW as torch.optim.AdamW does it (Loshchilov and Hutter, ICLR 2019).

    Args:
        betas: Decay of the first and the second moment at each step.
        eps: Added to the root of the second moment.
        weight_decay: The parameters are multiplied by 1 - step * weight_decay before the step.
    """
    rule = adam(betas, eps)

    def apply(direction: Tensors, step: float, params: Tensors, state: AdamState) -> tuple[Tensors, AdamState]:
        return rule.apply(direction, step, add(params, params, -step * weight_decay), state)

    return Update(rule.init, apply, rescales=True)


class DistanceState(NamedTuple):
    """What is known of each tensor.

    Attributes:
        start: Where it began.
        distances: Its greatest root mean square distance from there so far.
        squares: Sums of squares of its entries' directions.
        average: The average direction.
        steps: Number of steps done.
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
        first: r_0; its value matters little, since r grows by itself.
        momentum: Decay of the average; 0 for g_k itself.
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

    return Update(init, apply, finds_length=True)
