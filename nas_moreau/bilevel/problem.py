"""A bilevel problem as functions: min F(x, y) over x and y, where y minimises f(x, .) + g(x, .)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from torch import Tensor

Tensors = list[Tensor]
Objective = Callable[[Tensors, Tensors, Any], Any]
OfY = Callable[[Tensors], Tensor]
"""An objective as a function of y alone, at a fixed x and batch."""


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
    """min F(x, y) subject to x in X, y in argmin over y' in Y, h(x, y') <= 0, of f(x, y') + g(x, y').

    Args:
        F: Upper objective (x, y, batch) -> scalar, or (scalar, aux). x and y are lists of tensors; batch is whatever
            `step` was given, None if it is not used.
        f: Smooth part of the lower objective, of the same form.
        g: Nonsmooth part (`value` and `prox`), or None.
        project_x: Projection onto X, list of tensors -> list of tensors, or None for the whole space.
        project_y: Projection onto Y, of the same form; for a Y that changes with x a function of (x, y). With g it is
            applied after g's prox; the two together are the prox of g plus the indicator of Y where g and Y are
            separable in the same coordinates.
        f_theta: f as it is evaluated at theta; default f. (Networks: BatchNorm that leaves y's statistics alone.)
        at_x: (x, upper_batch, lower_batch) -> (F(x, .), f(x, .)), two functions of y alone that share the work which
            depends on x alone (the features of a backbone on which y is a head). They must equal F and f, without aux.
            The order "lagged" then needs a single backward pass, and further steps of theta and y (`lower_steps` of
            `moreau`) cost no more than what depends on y.
        constraint: h (x, y) -> tensor or list of tensors, of which every entry is <= 0 in the lower level. It couples
            the levels, so it has multipliers, which `solve` without a method finds; methods refuse it.

    Raises:
        ValueError: `constraint` together with g or `project_y`; write those as entries of h.
    """

    F: Objective
    f: Objective
    g: Nonsmooth | None = None
    project_x: Callable[[Tensors], Tensors] | None = None
    project_y: Callable[..., Tensors] | None = None
    f_theta: Objective | None = None
    at_x: Callable[[Tensors, Any, Any], tuple[OfY, OfY]] | None = None
    constraint: Callable[[Tensors, Tensors], Any] | None = None

    def __post_init__(self) -> None:
        if self.constraint is not None and (self.g is not None or self.project_y is not None):
            raise ValueError("constraint excludes g and project_y. Write the bounds on y as further entries of h.")

    @property
    def at_theta(self) -> Objective:
        """f as it is evaluated at theta."""
        return self.f if self.f_theta is None else self.f_theta

    def prox_y(self, x: Tensors, y: Tensors, step: float) -> Tensors:
        """Returns Prox of `step` times g(x, .) and the indicator of Y."""
        if self.g is not None:
            y = self.g.prox(x, y, step)
        if self.project_y is None:
            return y
        return self.project_y(x, y) if self.moving_set else self.project_y(y)

    def onto_x(self, x: Tensors) -> Tensors:
        """Returns the projection of x onto X."""
        return x if self.project_x is None else self.project_x(x)

    @cached_property
    def moving_set(self) -> bool:
        """Whether Y changes with x: `project_y` has two arguments."""
        if self.project_y is None:
            return False
        arguments = inspect.signature(self.project_y).parameters.values()
        return (
            sum(a.default is a.empty and a.kind in (a.POSITIONAL_ONLY, a.POSITIONAL_OR_KEYWORD) for a in arguments) > 1
        )

    @property
    def coupled(self) -> bool:
        """Whether x enters the lower level's constraints, so that they have multipliers."""
        return self.constraint is not None or self.moving_set

    @property
    def sharded(self) -> bool:
        """Whether several processes evaluate the objectives."""
        return any(isinstance(part, Sharded) for part in (self.F, self.f, self.f_theta))
