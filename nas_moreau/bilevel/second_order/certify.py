"""A certificate of a point that some method found, where it can be had cheaply."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nas_moreau.bilevel.problem import Bilevel, Tensors
from nas_moreau.bilevel.second_order import checks
from nas_moreau.bilevel.second_order.basins import looks_convex, not_convex_along_coordinates, other_basins
from nas_moreau.bilevel.second_order.flat import FlatProblem, OutOfBudgetError, drawn_like, seeded
from nas_moreau.bilevel.second_order.implicit import at_start, hyper_objective
from nas_moreau.bilevel.second_order.lower import DENSE
from nas_moreau.bilevel.second_order.upper import Evaluate, Place
from nas_moreau.bilevel.solution import UNKNOWN, Certificate

CHEAP = 2000
"""Unknowns of y up to which the point of a method is certified."""
ALIKE = 0.1
"""Largest relative difference between a product with the second derivative and a difference of gradients."""


def certify(problem: Bilevel, x: Tensors, y: Tensors, budget: int) -> tuple[Certificate, int]:
    """Returns what holds at (x, y) and the evaluations that it took; NaN for what cannot be found cheaply.

    Infinite are the hypergradient and the bias where autograd's hypergradient is not the slope of Phi.

    The lower level is solved from y, so the residual is the distance of y from its solution; the hypergradient and the
    bias are those of Phi at x.

    Args:
        problem: The problem.
        x, y: The point.
        budget: Evaluations that it may cost.
    """
    flat = FlatProblem(problem, x, y)
    if problem.sharded or len(flat.start()[1]) > CHEAP:
        return UNKNOWN, 0
    flat.limit, flat.started = budget, True
    try:
        return (_certificate(flat) if twice_differentiable(flat) else UNKNOWN), flat.evaluations
    except (OutOfBudgetError, RuntimeError):  # too expensive, or an operation that autograd cannot differentiate
        return UNKNOWN, flat.evaluations


def _certificate(flat: FlatProblem) -> Certificate:
    u, w = flat.start()
    evaluate = hyper_objective(flat)
    place = evaluate(u, at_start(w))
    lower = place.carry
    apart = float((lower.w - w).norm()) / max(float(w.norm()), 1e-3)
    residual = max(apart, lower.residual)
    if not place.finite:
        return Certificate(residual, lower.curvature, math.nan, math.nan)
    deeper = _deeper(flat, u, lower.w)
    if deeper is not None:
        residual = max(residual, float((deeper - w).norm()) / max(float(w.norm()), 1e-3))
    left = _above(flat, evaluate, place)
    return Certificate(residual, lower.curvature, *left)


def _deeper(flat: FlatProblem, u: Tensor, w: Tensor) -> Tensor | None:
    """Returns a deeper minimiser of the lower level, None where none is found."""
    if len(w) <= DENSE and looks_convex(flat, u, w) and not not_convex_along_coordinates(flat, u, w):
        return None
    return other_basins(flat, u, w).deeper


def _above(flat: FlatProblem, evaluate: Evaluate, place: Place) -> tuple[float, float, float]:
    """Returns the certificate's hypergradient, bias and upper curvature."""
    u, project, size = place.u, flat.problem.project_x, checks.sizes_of(place.u, place.u)
    scale, gain, lower_place = max(abs(place.value), 1e-300), 0.0, None
    if len(u) <= checks.SMALL or project is not None:
        onto = None if project is None else flat.onto_x
        lower_place = checks.lower_place_around(evaluate, place, size, flat.eps, onto)
    if lower_place is not None:
        gain = math.sqrt((place.value - lower_place.value) / max(abs(place.value), abs(lower_place.value)))
    if project is not None:
        steepness = float((place.gradient * size).norm())
        moved = flat.onto_x(u - place.gradient * size.square() / steepness) - u if steepness else torch.zeros_like(u)
        decrease = math.sqrt(max(0.0, -float(place.gradient @ moved)) / scale)
        if not checks.gradient_is_right(evaluate, place, size, flat.eps, flat.onto_x):
            decrease = math.inf
        return max(decrease, gain), math.nan, math.nan
    found = checks.curvature_at(evaluate, place, size, flat.eps, flat.eps * abs(place.value))
    if found is None:
        return math.nan, math.nan, math.nan
    if found.level:
        return (gain or math.nan), math.nan, found.lowest
    if not checks.gradient_is_right(evaluate, place, size, flat.eps, None):  # a kink, or a part hidden from autograd
        return math.inf, math.inf, found.lowest
    decrease = math.sqrt(max(0.0, found.decrease) / scale)
    bias = found.step if lower_place is None else math.inf
    return max(decrease, gain), bias, found.lowest


def twice_differentiable(flat: FlatProblem) -> bool:
    """Whether autograd's second derivative of f is the derivative of its gradient, at a point near the start."""
    u, w = flat.start()
    generator = seeded(8)
    size, root = 1 + float(w.norm()), math.sqrt(len(w))
    at = w + 1e-2 * size / root * drawn_like(w, generator)
    direction = drawn_like(w, generator) / root
    try:
        gradient, (_, leaf) = flat.gradient_with_graph(flat.f, u, at, wrt=1)
        product = flat.product(gradient, leaf, direction)
    except RuntimeError:
        return False
    h = flat.eps ** (1 / 3) * size
    ends = [flat.gradients(flat.f, u, at + sign * h * direction)[1][1] for sign in (1.0, -1.0)]
    difference = (ends[0] - ends[1]) / (2 * h)
    if not torch.isfinite(difference).all():
        return True  # outside the domain there; nothing is known against it
    noise = 1e2 * flat.eps * float(ends[0].norm()) / h
    larger = max(float(product.norm()), float(difference.norm()))
    return float((product - difference).norm()) <= ALIKE * larger + noise
