"""F(x, y*(x)) by its values alone, where autograd's derivatives are not those of the functions; for few unknowns.

f may have kinks that were not declared as g, or hide a part from autograd. y is found by Newton's method or, where that
fails, by L-BFGS, whose line search passes kinks; the gradient in x by central differences.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nas_moreau.bilevel.second_order import checks
from nas_moreau.bilevel.second_order.finish import Finished, minimise
from nas_moreau.bilevel.second_order.flat import FlatProblem, drawn_like, seeded
from nas_moreau.bilevel.second_order.implicit import at_start, solve_lower
from nas_moreau.bilevel.second_order.lower import Lower
from nas_moreau.bilevel.second_order.upper import Place, Settings, descend

ACCURATE = 1e-8
"""Lower residual above which a difference of two values means nothing."""
STEPS = 300
"""Line searches of y."""


def finish_by_values(flat: FlatProblem, u: Tensor, w: Tensor, origin: Tensor, settings: Settings) -> Finished | None:
    """Returns the stationary point of Phi reached from (u, w); None where Phi is not defined at the start.

    Args:
        flat: The problem; x has at most `checks.SMALL` entries.
        u: x.
        w: y; it chooses the lower level's basin.
        origin: Start of x, from which its size is measured where it is near 0.
        settings: Limits of the descents.
    """
    u, kinked = flat.onto_x(u), False

    def value(at: Tensor, near: Lower) -> Place:
        nonlocal kinked
        found = None if kinked else _at(flat, at, solve_lower(flat, at, near.w, near.multipliers))
        if found is None or (flat.smooth and not math.isfinite(found.value)):
            found, kinked = _at(flat, at, _descended(flat, at, near.w)), True
        return found

    def evaluate(at: Tensor, near: Lower) -> Place:
        here = value(at, near)
        if not math.isfinite(here.value):
            return here
        h = flat.eps**0.25 * checks.sizes_of(at, origin)
        slopes = []
        for i in range(len(at)):
            shift = torch.zeros_like(at)
            shift[i] = h[i]
            ends = [value(at + sign * shift, here.carry).value for sign in (1.0, -1.0)]
            slopes.append((ends[0] - ends[1]) / (2 * float(h[i])))
        return here._replace(gradient=torch.tensor(slopes, dtype=at.dtype, device=at.device))

    begin = evaluate(u, at_start(w))
    if not begin.finite:
        return None
    project = None if flat.problem.project_x is None else flat.onto_x
    place = begin._replace(u=origin) if float((origin - u).norm()) > 0 else begin
    return minimise(evaluate, begin, settings._replace(project=project, origin=place))


def _at(flat: FlatProblem, u: Tensor, lower: Lower) -> Place:
    """Returns Phi without its gradient, infinite where the lower level is not solved."""
    value = flat.value(flat.F, u, lower.w)
    usable = lower.residual <= ACCURATE and (lower.definite or not flat.smooth)
    return Place(u, value if usable else math.inf, torch.zeros_like(u), lower)


def _descended(flat: FlatProblem, u: Tensor, w: Tensor) -> Lower:
    """Returns the minimiser of f(x, .) downhill from w, which may lie on a kink.

    Its residual is the last quasi-Newton step, or the radius within which 0 is a mean of gradients; its curvature is 1
    where f grows in all of a few directions, 0 where it does not.
    """

    def function(v: Tensor, carry: Any) -> Place:
        value, (gradient,) = flat.gradients(lambda at: flat.f(u, at), v)
        return Place(v, value if math.isfinite(value) else math.inf, gradient, None)

    begin = function(w, None)
    if not begin.finite:
        return at_start(w)
    previous, still = w, 0

    def settled(place: Place) -> bool:  # on a kink no slope vanishes: the steps do
        nonlocal previous, still
        moved = float((place.u - previous).norm())
        still = still + 1 if moved <= 4 * flat.eps * float(place.u.norm()) else 0
        previous = place.u
        return still >= 2

    descent = descend(function, begin, Settings(flat.eps, STEPS, flat.eps, stop=settled))
    place = descent.place
    size = checks.sizes_of(place.u, w).clamp(min=1e-3)
    residual = descent.step
    if not residual <= ACCURATE:
        residual = min(residual, checks.kink_radius(function, place, size))
    generator, grows = seeded(9), True
    for radius in (1e-2, 1e-3):
        for _ in range(2 * min(len(w), checks.SMALL)):
            new = flat.value(lambda at: flat.f(u, at), place.u + radius * size * drawn_like(w, generator))
            grows = grows and new > place.value + 10 * flat.eps * abs(place.value)
    flat.nonconvex = True  # no second derivative speaks for a single basin
    return Lower(place.u, residual, 1.0 if grows else 0.0, lambda F_y: torch.full_like(u, math.nan))
