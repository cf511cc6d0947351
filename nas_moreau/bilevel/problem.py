"""A bilevel problem as functions: min F(x, y) over x and y, where y minimises f(x, .) + g(x, .)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

Tensors = list[Tensor]
Objective = Callable[[Tensors, Tensors, Any], Any]


class Nonsmooth(Protocol):
    """The part g of the lower level that has a cheap proximal map in y."""

    def value(self, x: Tensors, y: Tensors) -> Tensor:
        """Returns g(x, y), a scalar, differentiable in x."""

    def prox(self, x: Tensors, y: Tensors, step: float) -> Tensors:
        """Returns argmin over u of g(x, u) + |u - y|^2 / (2 step)."""


@dataclass(frozen=True)
class Sharded:
    """An objective of which each process evaluates one shard of the batch, for `Bilevel`'s F, f and f_theta.

    Args:
        objective: The objective on this process's shard.
        reduce: (value, gradients, aux) on the shard -> those on the whole batch, the same in every process.
    """

    objective: Objective
    reduce: Callable[[Tensor, Tensors, Any], tuple[Tensor, Tensors, Any]]

    def __call__(self, x: Tensors, y: Tensors, batch: Any) -> Any:
        """Returns what the objective returns for the shard."""
        return self.objective(x, y, batch)


@dataclass(frozen=True)
class Bilevel:
    """min F(x, y) subject to x in X, y in argmin over y' in Y of f(x, y') + g(x, y').

    Args:
        F: Upper objective (x, y, batch) -> scalar, or (scalar, aux). x and y are lists of tensors; batch is whatever
            `step` was given, None if it is not used.
        f: Smooth part of the lower objective, of the same form.
        g: Nonsmooth part (`value` and `prox`), or None.
        project_x: Projection onto X, list of tensors -> list of tensors, or None for the whole space.
        project_y: Projection onto Y, in the same form. With g it is applied after g's prox; the two together are the
            prox of g plus the indicator of Y where g and Y are separable in the same coordinates.
        f_theta: f as it is evaluated at theta; default f. (Networks: BatchNorm that leaves y's statistics alone.)
        together: (x, y, theta, upper_batch, lower_batch) -> (F(x, y), f(x, y), f_theta(x, theta)), the same three
            scalars from one computation, for problems where they share work (a backbone for the features of both y and
            theta). The order "lagged" then needs a single backward pass. The values must equal F, f and f_theta.
    """

    F: Objective
    f: Objective
    g: Nonsmooth | None = None
    project_x: Callable[[Tensors], Tensors] | None = None
    project_y: Callable[[Tensors], Tensors] | None = None
    f_theta: Objective | None = None
    together: Callable[[Tensors, Tensors, Tensors, Any, Any], tuple[Tensor, Tensor, Tensor]] | None = None

    @property
    def at_theta(self) -> Objective:
        """f as it is evaluated at theta."""
        return self.f if self.f_theta is None else self.f_theta

    def prox_y(self, x: Tensors, y: Tensors, step: float) -> Tensors:
        """Returns Prox of `step` times g(x, .) and the indicator of Y."""
        if self.g is not None:
            y = self.g.prox(x, y, step)
        return y if self.project_y is None else self.project_y(y)

    def onto_x(self, x: Tensors) -> Tensors:
        """Returns the projection of x onto X."""
        return x if self.project_x is None else self.project_x(x)
