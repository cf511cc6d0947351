"""The hyper-objective Phi(x) = F(x, y*(x)) and its gradient by the implicit function theorem."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nas_moreau.bilevel.second_order.constrained import solve_constrained
from nas_moreau.bilevel.second_order.flat import FlatProblem
from nas_moreau.bilevel.second_order.lower import Lower, solve_smooth
from nas_moreau.bilevel.second_order.proximal import solve_proximal
from nas_moreau.bilevel.second_order.upper import Evaluate, Place

ACCURATE, FEASIBLE = 1e-3, 1e-7
"""Lower residual above which a value of Phi means nothing, without and with constraints that may have no solution."""


def solve_lower(flat: FlatProblem, u: Tensor, w: Tensor, multipliers: Tensor | None = None) -> Lower:
    """Returns the lower level's stationary point that lies downhill from w."""
    if flat.problem.constraint is not None:
        return solve_constrained(flat, u, w, multipliers)
    return solve_proximal(flat, u, w) if flat.proximal else solve_smooth(flat, u, w)


def hyper_objective(flat: FlatProblem) -> Evaluate:
    """Returns (u, lower level near which to search) -> Phi with its gradient; `Place.carry` is the `Lower` there.

    The value is infinite where Phi is not defined: outside the domain of F or f, or where the lower level is not
    solved, or has a set of minimisers from which the implicit gradient cannot choose.
    """

    def evaluate(u: Tensor, near: Lower) -> Place:
        lower = solve_lower(flat, u, near.w, near.multipliers)
        value, (F_x, F_y) = flat.gradients(flat.F, u, lower.w)
        limit = ACCURATE if flat.problem.constraint is None else max(FEASIBLE, 1e2 * flat.eps)
        defined = lower.residual <= limit and (lower.definite or not flat.smooth)
        gradient = F_x + lower.adjoint(F_y) if defined else F_x
        usable = defined and math.isfinite(value) and bool(torch.isfinite(gradient).all())
        return Place(u, value if usable else math.inf, gradient, lower)

    return evaluate


def at_start(w: Tensor) -> Lower:
    """Returns a lower level that is not solved yet, to begin with."""
    return Lower(w, math.inf, math.nan, lambda F_y: F_y)
