"""How far from a solution: the residual R_k of (15), the merit V_k of (16), and the inner problems solved to tolerance.

These evaluate v_gamma and so cost an inner loop; the quantities that a step computes anyway are in `method.Info`:
|d_x|, |d_y|, |d_theta| and the gap f(y) - f(theta).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas_moreau.bilevel import tensors
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.tensors import (
    Tensors,
    add,
    dot,
    grad_x,
    grad_x_of_g,
    norm,
    scale,
    subtract,
    value_and_grads,
)


class Minimum(NamedTuple):
    """An inner problem's minimiser.

    Attributes:
        point: It.
        value: Of the inner problem there.
        residual: Length of the last step over the step size.
        steps: Steps taken.
        stopped: Whether `stop` ended the search.
    """

    point: Tensors
    value: Tensor
    residual: float
    steps: int
    stopped: bool = False


class Residual(NamedTuple):
    """R_k of (15), and what it is made of.

    Attributes:
        total: R_k.
        x, y: Its parts.
        gap: phi - v_gamma there.
        theta: The inner problem's minimiser.
        inner: That one's residual, which bounds the error of `total`.
    """

    total: float
    x: float
    y: float
    gap: float
    theta: Tensors
    inner: float


def lower_solution(
    problem: Bilevel,
    x: Tensors,
    y: Tensors,
    batch: Any = None,
    gamma: float = math.inf,
    center: Tensors | None = None,
    tolerance: float = 1e-10,
    steps: int = 10_000,
    stop: Callable[[int, Tensors], bool] | None = None,
) -> Minimum:
    """Returns argmin over u in Y of phi(x, u) + |u - center|^2 / (2 gamma), found near y.

    Proximal gradient with Nesterov's momentum, restarted whenever it points uphill, and a step size found by
    backtracking. With gamma infinite it is the lower level itself; else theta* and v_gamma of (8).

    Args:
        problem: Its f, g and Y are used.
        x: Fixed.
        y: Where to start.
        batch: On which f is evaluated.
        gamma: Parameter of the proximal term.
        center: Centre of the proximal term; default y.
        tolerance: Bound on |u - u_next| / step.
        steps: Maximum number of steps.
        stop: Called after every step with (k, point); True ends the search.
    """
    center = y if center is None else center

    def smooth(u: Tensors) -> Tensor:
        apart = subtract(u, center)
        return tensors.value(problem.at_theta, x, u, batch) + dot(apart, apart) / (2 * gamma)

    def smooth_with_gradient(u: Tensors) -> tuple[Tensor, Tensors]:
        found = value_and_grads(problem.at_theta, x, u, batch, wrt="y")
        apart = subtract(u, center)
        return found.value + dot(apart, apart) / (2 * gamma), add(found.grad_y, apart, 1 / gamma)

    point, previous, step, weight, residual, taken, stopped = y, y, 1.0, 1.0, math.inf, 0, False
    for _ in range(steps):
        taken += 1
        next_weight = 0.5 * (1 + math.sqrt(1 + 4 * weight**2))
        ahead = add(point, subtract(point, previous), (weight - 1) / next_weight)
        value, gradient = smooth_with_gradient(ahead)
        while True:
            new = problem.prox_y(x, add(ahead, gradient, -step), step)
            moved = subtract(new, ahead)
            length = float(norm(moved))
            model = value + dot(gradient, moved) + length**2 / (2 * step)
            slack = 10 * torch.finfo(value.dtype).eps * (1 + value.abs())
            if bool(smooth(new) <= model + slack) or step < 1e-12:
                break
            step /= 2
        residual = length / step
        uphill = float(dot(subtract(ahead, new), subtract(new, point))) > 0
        previous, point, weight = point, new, next_weight
        if uphill:
            previous, weight = point, 1.0
        stopped = stop is not None and stop(taken - 1, point)
        if stopped or residual <= tolerance or not math.isfinite(residual):
            break
    value = smooth(point)
    if problem.g is not None:
        value = value + problem.g.value(x, point)
    return Minimum([t.detach() for t in point], value.detach(), residual, taken, stopped)


def phi(problem: Bilevel, x: Tensors, y: Tensors, batch: Any = None) -> Tensor:
    """Returns f + g at (x, y)."""
    value = tensors.value(problem.at_theta, x, y, batch)
    return value if problem.g is None else value + problem.g.value(x, y).detach()


def residual(
    problem: Bilevel,
    x: Tensors,
    y: Tensors,
    c: float,
    gamma: float,
    batches: tuple[Any, Any] = (None, None),
    tolerance: float = 1e-10,
    start: Tensors | None = None,
) -> Residual:
    """Returns R_k = dist(0, grad F + c (grad f + dg - grad v_gamma) + N_{X x Y}) at (x, y), equation (15).

    The distance to a set of subgradients is taken as the length of a proximal step over a vanishing step size,
    which it equals in the limit.

    Args:
        problem: F, f, g, X and Y.
        x: The point's upper variable.
        y: The point's lower variable.
        c: The penalty c_k.
        gamma: Parameter of the envelope.
        batches: On which F and f are evaluated.
        tolerance: Of the inner problem's solution.
        start: Where its search starts; default y.
    """
    upper_batch, lower_batch = batches
    inner = lower_solution(problem, x, y if start is None else start, lower_batch, gamma, y, tolerance)
    upper = value_and_grads(problem.F, x, y, upper_batch)
    lower = value_and_grads(problem.f, x, y, lower_batch)
    at_theta = grad_x(problem.at_theta, x, inner.point, lower_batch)
    R_x = add(upper.grad_x, subtract(lower.grad_x, at_theta), c)
    if problem.g is not None:
        on_g = subtract(grad_x_of_g(problem.g, x, y), grad_x_of_g(problem.g, x, inner.point))
        R_x = add(R_x, on_g, c)
    R_y = add(add(upper.grad_y, lower.grad_y, c), subtract(y, inner.point), -c / gamma)
    eps = max(torch.finfo(t.dtype).eps for t in [*x, *y])
    t = math.sqrt(eps)
    part_x = _mapping(x, R_x, t, problem.onto_x if problem.project_x else None)
    proximal = problem.g is not None or problem.project_y is not None
    part_y = _mapping(y, R_y, t, (lambda u: problem.prox_y(x, u, t * c)) if proximal else None)
    gap = phi(problem, x, y, lower_batch) - inner.value
    return Residual(math.hypot(part_x, part_y), part_x, part_y, float(gap), inner.point, inner.residual)


def _mapping(point: Tensors, gradient: Tensors, t: float, onto: Any) -> float:
    """Returns |point - onto(point - t gradient)| / t; without `onto` simply |gradient|."""
    if onto is None:
        return float(norm(gradient))
    return float(norm(scale(subtract(point, onto(add(point, gradient, -t))), 1 / t)))


def merit(
    problem: Bilevel,
    x: Tensors,
    y: Tensors,
    theta: Tensors,
    c: float,
    gamma: float,
    lipschitz: float,
    lowest: float = 0.0,
    batches: tuple[Any, Any] = (None, None),
    tolerance: float = 1e-12,
) -> float:
    """Returns V_k = (F - inf F)/c + phi - v_gamma + C_V |theta - theta*|^2, equation (16).

    C_V = lipschitz^2 + 1/gamma^2. The arguments are the symbols of (16).

    Args:
        problem: F, f, g, X and Y.
        x: The point's upper variable.
        y: The point's lower variable.
        theta: The method's theta.
        c: The penalty c_k.
        gamma: Parameter of the envelope.
        lipschitz: L_f + L_g.
        lowest: inf F.
        batches: On which F and f are evaluated.
        tolerance: Of the inner problem's solution.
    """
    upper_batch, lower_batch = batches
    inner = lower_solution(problem, x, theta, lower_batch, gamma, y, tolerance)
    upper = tensors.value(problem.F, x, y, upper_batch)
    gap = phi(problem, x, y, lower_batch) - inner.value
    apart = subtract(theta, inner.point)
    return float((upper - lowest) / c + gap + (lipschitz**2 + gamma**-2) * dot(apart, apart))
