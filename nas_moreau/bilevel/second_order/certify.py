"""A certificate of a point that some method found, where it can be had cheaply."""

from __future__ import annotations

import math

import torch

from nas_moreau.bilevel.problem import Bilevel, Tensors
from nas_moreau.bilevel.second_order import checks
from nas_moreau.bilevel.second_order.flat import FlatProblem, OutOfBudgetError, drawn_like, seeded
from nas_moreau.bilevel.second_order.implicit import at_start, hyper_objective
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
    size = checks.sizes_of(u, u)
    if flat.problem.project_x is not None:
        steepness = float((place.gradient * size).norm())
        moved = flat.onto_x(u - place.gradient * size.square() / steepness) - u if steepness else torch.zeros_like(u)
        decrease = math.sqrt(max(0.0, -float(place.gradient @ moved)) / max(abs(place.value), 1e-300))
        return Certificate(residual, lower.curvature, decrease, math.nan)
    found = checks.curvature_at(evaluate, place, size, flat.eps, flat.eps * abs(place.value))
    if found is None:
        return Certificate(residual, lower.curvature, math.nan, math.nan)
    decrease = math.sqrt(max(0.0, found.decrease) / max(abs(place.value), 1e-300))
    if not checks.gradient_is_right(evaluate, place, size, flat.eps, None):  # a kink, or a part hidden from autograd
        return Certificate(residual, lower.curvature, math.inf, math.inf, found.lowest)
    return Certificate(residual, lower.curvature, decrease, found.step, found.lowest)


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
