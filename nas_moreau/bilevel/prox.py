"""Nonsmooth lower-level terms g with their proximal maps, and projections onto simple sets.

Every g has `value(x, y)`, a scalar differentiable in x, and `prox(x, y, step)`, the argmin over u of
g(x, u) + |u - y|^2 / (2 step). Every `project_*` returns a function from a list of tensors to a list of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nas_moreau.bilevel.tensors import Tensors

Weight = float | Callable[[Tensors], Tensors]


def soft(y: Tensor, threshold: Tensor | float) -> Tensor:
    """Returns y moved towards 0 by `threshold`, element by element, and 0 where it would cross."""
    return y.sign() * (y.abs() - threshold).clamp(min=0)


class Zero(NamedTuple):
    """g = 0."""

    def value(self, x: Tensors, y: Tensors) -> Tensor:
        """Returns 0."""
        return y[0].new_zeros(())

    def prox(self, x: Tensors, y: Tensors, step: float) -> Tensors:
        """Returns y."""
        return y


class L1(NamedTuple):
    """g = sum w |y|.

    Attributes:
        weight: w, a number or x -> one tensor for each tensor of y that broadcasts to it (w = x, say).

    Example:
        >>> import torch
        >>> g = L1(lambda x: x)
        >>> x, y = [torch.tensor([0.5, 2.0])], [torch.tensor([3.0, -1.0])]
        >>> g.value(x, y), g.prox(x, y, 1.0)
        (tensor(3.5000), [tensor([2.5000, -0.0000])])
    """

    weight: Weight = 1.0

    def _weights(self, x: Tensors, y: Tensors) -> Sequence[Tensor | float]:
        return self.weight(x) if callable(self.weight) else [self.weight] * len(y)

    def value(self, x: Tensors, y: Tensors) -> Tensor:
        """Returns sum w |y|."""
        return torch.stack([(w * t.abs()).sum() for w, t in zip(self._weights(x, y), y)]).sum()

    def prox(self, x: Tensors, y: Tensors, step: float) -> Tensors:
        """Returns y with each element shrunk by step * w."""
        return [soft(t, step * w) for w, t in zip(self._weights(x, y), y)]


class GroupLasso(NamedTuple):
    """g = sum_j w_j |y_(j)| over groups j of one flat y.

    Attributes:
        group_of: Group number of each element of y[0], int64 (n,), 0 .. groups - 1.
        groups: How many.
        weight: w, a number or x -> a list with one tensor (groups,).
    """

    group_of: Tensor
    groups: int
    weight: Weight = lambda x: x

    def _weights(self, x: Tensors) -> Tensor | float:
        return self.weight(x)[0] if callable(self.weight) else self.weight

    def norms(self, y: Tensors) -> Tensor:
        """Returns |y_(j)| of every group, (groups,)."""
        return y[0].new_zeros(self.groups).index_add(0, self.group_of, y[0].square()).sqrt()

    def value(self, x: Tensors, y: Tensors) -> Tensor:
        """Returns sum_j w_j |y_(j)|."""
        return (self._weights(x) * self.norms(y)).sum()

    def prox(self, x: Tensors, y: Tensors, step: float) -> Tensors:
        """Returns y with each group shortened by step * w_j."""
        norms = self.norms(y)
        kept = (norms - step * self._weights(x)).clamp(min=0) / torch.where(norms > 0, norms, 1.0)
        return [y[0] * kept[self.group_of]]


class SCAD(NamedTuple):
    """g = sum of the SCAD penalty (Fan and Li, 2001), weakly convex with constant 1/(a-1).

    Its derivative at t >= 0 is strength for t <= strength, (a strength - t)/(a - 1) up to a strength, then 0.
    """

    strength: float
    a: float = 3.7

    def value(self, x: Tensors, y: Tensors) -> Tensor:
        """Returns the sum of the penalty over all elements."""
        s, a = self.strength, self.a

        def penalty(t: Tensor) -> Tensor:
            middle = (2 * a * s * t - t * t - s * s) / (2 * (a - 1))
            return torch.where(t <= s, s * t, torch.where(t <= a * s, middle, s * s * (a + 1) / 2)).sum()

        return torch.stack([penalty(t.abs()) for t in y]).sum()

    def prox(self, x: Tensors, y: Tensors, step: float) -> Tensors:
        """Returns the prox; it is single-valued for step < a - 1.

        Raises:
            ValueError: The step is larger.
        """
        s, a = self.strength, self.a
        if step >= a - 1:
            raise ValueError(f"The prox of SCAD is not unique at step {step}; use a step below a - 1 = {a - 1}.")

        def one(t: Tensor) -> Tensor:
            middle = ((a - 1) * t - t.sign() * (step * a * s)) / (a - 1 - step)
            return torch.where(t.abs() <= s * (1 + step), soft(t, step * s), torch.where(t.abs() <= a * s, middle, t))

        return [one(t) for t in y]


class MCP(NamedTuple):
    """g = sum of the minimax concave penalty (Zhang, 2010), weakly convex with constant 1/b.

    strength t - t^2/(2b) for 0 <= t <= b strength, then the constant b strength^2 / 2.
    """

    strength: float
    b: float = 3.0

    def value(self, x: Tensors, y: Tensors) -> Tensor:
        """Returns the sum of the penalty over all elements."""
        s, b = self.strength, self.b

        def penalty(t: Tensor) -> Tensor:
            return torch.where(t <= b * s, s * t - t * t / (2 * b), b * s * s / 2).sum()

        return torch.stack([penalty(t.abs()) for t in y]).sum()

    def prox(self, x: Tensors, y: Tensors, step: float) -> Tensors:
        """Returns the prox; it is single-valued for step < b.

        Raises:
            ValueError: The step is larger.
        """
        s, b = self.strength, self.b
        if step >= b:
            raise ValueError(f"The prox of MCP is not unique at step {step}; use a step below b = {b}.")
        return [torch.where(t.abs() <= b * s, soft(t, step * s) / (1 - step / b), t) for t in y]


Projection = Callable[[Tensors], Tensors]


def project_box(low: float | None = None, high: float | None = None) -> Projection:
    """Returns the projection onto low <= every element <= high; None leaves a side open."""
    return lambda tensors: [t.clamp(min=low, max=high) for t in tensors]


def project_ball(radius: float = 1.0) -> Projection:
    """Returns the projection of every tensor, as one vector, onto the Euclidean ball of that radius."""

    def project(t: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(t)
        return t * (radius / length.clamp(min=radius))

    return lambda tensors: [project(t) for t in tensors]


def project_simplex(total: float = 1.0) -> Projection:
    """Returns the projection of every last axis onto {u >= 0, sum u = total} (Held, Wolfe and Crowder, 1974)."""

    def project(t: Tensor) -> Tensor:
        ordered = t.sort(-1, descending=True).values
        count = torch.arange(1, t.shape[-1] + 1, device=t.device, dtype=t.dtype)
        shift = (ordered.cumsum(-1) - total) / count
        active = (ordered > shift).sum(-1, keepdim=True)
        return (t - shift.gather(-1, active - 1)).clamp(min=0)

    return lambda tensors: [project(t) for t in tensors]
