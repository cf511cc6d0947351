"""Lower levels with a set of minimisers, from which F chooses: the penalised problem solved, its bias extrapolated.

    y_c(x)   = argmin over y of phi(x, y) + F(x, y) / c        theta(x) = argmin over y of phi(x, y)
    Phi_c(x) = F(x, y_c) + c ( phi(x, y_c) - phi(x, theta) )   dPhi_c  = F_x + c ( phi_x(x, y_c) - phi_x(x, theta) )

with phi = f + g. This is the penalised problem of the Moreau envelope with gamma infinite. Its minimiser x(c) is smooth
in t = 1/c near t = 0; from c, 2c, 4c, 8c the polynomial through them gives x at t = 0 with error O(t^4) (Richardson).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nas_moreau.bilevel.second_order.finish import Finished, minimise
from nas_moreau.bilevel.second_order.flat import FlatProblem, Function, drawn_like, seeded
from nas_moreau.bilevel.second_order.lower import Minimum, newton
from nas_moreau.bilevel.second_order.proximal import minimise_proximal
from nas_moreau.bilevel.second_order.upper import Evaluate, Place, Settings

LEVELS = (1.0, 2.0, 4.0, 8.0)
FIRST = 300.0
"""The first penalty in units of |F_yy| / |f_yy| at the start, so that y_c stays near the lower level's solution."""


class Inner(NamedTuple):
    """The two inner problems at an x: y_c, theta, and the larger residual of the two."""

    w: Tensor
    theta: Tensor
    residual: float


class Extrapolated(NamedTuple):
    """The limit of the penalised minimisers.

    Attributes:
        u, w: The extrapolated point.
        bias: Estimated relative error of x: the difference of two orders of extrapolation.
        residual: Of the lower level at the point: the distance to its nearest minimiser relative to |w|.
        finished: What holds at the largest penalty.
    """

    u: Tensor
    w: Tensor
    bias: float
    residual: float
    finished: Finished


def finish_penalised(
    flat: FlatProblem,
    u: Tensor,
    w: Tensor,
    *,
    tolerance: float,
    steps: int,
    stop: Callable[[Place], bool] = lambda place: False,
) -> Extrapolated | None:
    """Returns the point to which the minimisers of Phi_c tend; None where they cannot be found.

    Args:
        flat: Its lower level has no coupled constraint.
        u, w: The start.
        tolerance: On the square root of the predicted relative decrease of each Phi_c.
        steps: Maximum number of line searches at each penalty.
        stop: Called after every line search; True ends the run.
    """
    first = FIRST * _ratio(flat, u, w)
    penalties, found, theta = [first * level for level in LEVELS], [], w
    project = None if flat.problem.project_x is None else flat.onto_x
    u = flat.onto_x(u)
    inner = Inner(w, theta, math.inf)
    for c in penalties:
        evaluate = _penalised_objective(flat, c)
        begin = evaluate(u, inner)
        if not begin.finite:
            return None
        # values of Phi_c carry the rounding error of c f
        settings = Settings(tolerance, steps, flat.eps * max(1.0, c), project, stop)
        finished = minimise(evaluate, begin, settings)
        u, inner = finished.descent.place.u, finished.descent.place.carry
        if finished.descent.stopped or finished.descent.unbounded:
            return None
        found.append(torch.cat([u, inner.w]))
    whole, part, n = _limit(penalties, found), _limit(penalties[1:], found[1:]), len(u)
    bias = float((whole - part)[:n].norm()) / max(1.0, float(whole[:n].norm()))
    u, w = flat.onto_x(whole[:n]), whole[n:]
    below = _minimise(flat, lambda v: flat.f(u, v), u, w)
    residual = max(below.residual, float((below.w - w).norm()) / (1 + float(w.norm())))
    return Extrapolated(u, w, bias, residual, finished)


def _penalised_objective(flat: FlatProblem, c: float) -> Evaluate:
    """Returns (u, inner problems near which to search) -> Phi_c with its gradient."""

    def phi(u: Tensor, w: Tensor) -> Tensor:
        return flat.f(u, w) + flat.g(u, w)

    def evaluate(u: Tensor, near: Inner) -> Place:
        bottom = _minimise(flat, lambda v: flat.f(u, v), u, near.theta)
        best = _minimise(flat, lambda v: flat.f(u, v) + flat.F(u, v) / c, u, near.w)
        upper, (F_x,) = flat.gradients(lambda at: flat.F(at, best.w), u)
        lower, (f_x,) = flat.gradients(lambda at: phi(at, best.w), u)
        floor, (v_x,) = flat.gradients(lambda at: phi(at, bottom.w), u)
        value, residual = upper + c * (lower - floor), max(bottom.residual, best.residual)
        usable = math.isfinite(value) and residual <= 1e-3
        return Place(u, value if usable else math.inf, F_x + c * (f_x - v_x), Inner(best.w, bottom.w, residual))

    return evaluate


def _minimise(flat: FlatProblem, function: Function, u: Tensor, w: Tensor) -> Minimum:
    """Returns the minimiser of a smooth function plus g over Y."""
    if not flat.proximal:
        return newton(flat, function, w)
    found = minimise_proximal(flat, function, u, w)
    return Minimum(found.w, found.residual, math.nan)


def _limit(penalties: list[float], points: list[Tensor]) -> Tensor:
    """Returns the value at 1/c = 0 of the polynomial in 1/c through the points."""
    total = torch.zeros_like(points[0])
    for i, (c, point) in enumerate(zip(penalties, points)):
        weight = math.prod(c / (c - other) for j, other in enumerate(penalties) if j != i)
        total = total + weight * point
    return total


def _ratio(flat: FlatProblem, u: Tensor, w: Tensor) -> float:
    """Returns |F_yy| / |f_yy| along a random direction, 1 where either vanishes."""
    direction = drawn_like(w, seeded(0))
    h = flat.eps ** (1 / 3) * (1 + float(w.norm())) / float(direction.norm())
    bends = []
    for function in (flat.F, flat.f):
        ends = [flat.gradients(function, u, w + sign * h * direction)[1][1] for sign in (1.0, -1.0)]
        bends.append(float((ends[0] - ends[1]).norm()))
    return bends[0] / bends[1] if all(math.isfinite(bend) and bend > 1e-12 for bend in bends) else 1.0
