"""Curvatures of F, f and phi = f + g, from secants (grad(z + h d) - grad(z)) / h of the user's own gradients.

Power iteration on them gives Lipschitz constants by blocks; F and f need not be twice differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from nas_moreau.bilevel.method import Batches
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.tensors import (
    Tensors,
    add,
    dot,
    grad_x_of_g,
    grad_y,
    norm,
    random_like,
    scale,
    subtract,
    value_and_grads,
)

PROBES = 32
"""Points, over all places, at which the lower level is tested for nonconvexity at the start; one gradient each."""


class Curvature(NamedTuple):
    """What is known of F, f and phi at a place, or the worst of several.

    Attributes:
        F_xx, F_yy, F, f_xx, f_yy, phi_xy, phi: Lipschitz constants of gradients, by blocks and of all together.
        rho: The weak convexity of f(x, .).
        answer: m of measured.py, the curvature of f(x, .) with which theta* answers to x.
        F_slope, phi_slope: Norms of the gradients.
    """

    F_xx: float
    F_yy: float
    F: float
    f_xx: float
    f_yy: float
    phi_xy: float
    phi: float
    rho: float
    answer: float
    F_slope: float
    phi_slope: float


def measure(problem: Bilevel, x: Tensors, y: Tensors, batches: Batches, seed: int, iterations: int) -> Curvature:
    """Returns the curvatures at (x, y); about 10 gradient evaluations of F and of f for each iteration."""
    generator = torch.Generator(device="cpu").manual_seed(seed)

    def gradient(smooth: Any, batch: Any, x: Tensors, y: Tensors, with_g: bool) -> tuple[Tensors, Tensors]:
        found = value_and_grads(smooth, x, y, batch)
        grad_x = found.grad_x
        if with_g and problem.g is not None:
            grad_x = add(grad_x, grad_x_of_g(problem.g, x, y))
        return grad_x, found.grad_y

    def bend(smooth: Any, batch: Any, with_g: bool) -> Any:
        at_x, at_y = gradient(smooth, batch, x, y, with_g)
        eps = max(torch.finfo(t.dtype).eps for t in [*x, *y])
        h = math.sqrt(eps) * (1 + float(norm([*x, *y])))

        def times(u: Tensors, v: Tensors) -> tuple[Tensors, Tensors]:
            moved_x, moved_y = gradient(smooth, batch, add(x, u, h), add(y, v, h), with_g)
            return scale(subtract(moved_x, at_x), 1 / h), scale(subtract(moved_y, at_y), 1 / h)

        return times, float(norm([*at_x, *at_y]))

    def draw(like: Tensors) -> Tensors:
        drawn = random_like(like, generator)
        return scale(drawn, 1 / float(norm(drawn)))

    def largest(apply: Callable[[Tensors], Tensors], start: Tensors) -> float:
        return power_iteration(apply, start, iterations)[0]

    no_x, no_y, m = [torch.zeros_like(t) for t in x], [torch.zeros_like(t) for t in y], len(x)
    times_F, slope_F = bend(problem.F, batches.upper, with_g=False)
    times_f, slope_f = bend(problem.f, batches.lower, with_g=True)

    def joint(times: Any) -> Any:
        return lambda v: [t for part in times(v[:m], v[m:]) for t in part]

    f_yy = largest(lambda v: times_f(no_x, v)[1], draw(y))
    least = f_yy - largest(lambda v: subtract(scale(v, f_yy), times_f(no_x, v)[1]), draw(y))
    return Curvature(
        F_xx=largest(lambda u: times_F(u, no_y)[0], draw(x)),
        F_yy=largest(lambda v: times_F(no_x, v)[1], draw(y)),
        F=largest(joint(times_F), draw([*x, *y])),
        f_xx=largest(lambda u: times_f(u, no_y)[0], draw(x)),
        f_yy=f_yy,
        # from y to x only: g is not differentiable in y
        phi_xy=math.sqrt(largest(lambda v: times_f(times_f(no_x, v)[0], no_y)[1], draw(y)))
        if problem.g is None
        else _operator_norm(times_f, no_x, [draw(y) for _ in range(iterations)]),
        phi=largest(joint(times_f), draw([*x, *y])),
        rho=max(0.0, -least),
        answer=f_yy if problem.g is None else max(0.0, least),
        F_slope=slope_F,
        phi_slope=slope_f,
    )


def power_iteration(apply: Callable[[Tensors], Tensors], start: Tensors, iterations: int) -> tuple[float, Tensors]:
    """Returns a lower estimate of the largest |eigenvalue| of a symmetric map, and a direction of length 1 for it.

    It ends early, with that value, where an image is 0 or not finite.

    Args:
        apply: The map.
        start: Direction of length 1.
        iterations: Number of images to compute.
    """
    found, v = 0.0, start
    for _ in range(iterations):
        image = apply(v)
        found = float(norm(image))
        if not 0 < found < math.inf:
            break
        v = scale(image, 1 / found)
    return found, v


def _operator_norm(times: Any, no_x: Tensors, directions: list[Tensors]) -> float:
    """Returns the largest |H_xy v| met, v of length 1."""
    return max(float(norm(times(no_x, v)[0])) for v in directions)


def nonmonotone(problem: Bilevel, places: list[tuple[Tensors, Tensors]], around: Any, batch: Any) -> float:
    """Returns the greatest -<grad_y f(u) - grad_y f(v), u - v> / |u - v|^2 met between points around the places.

    It is 0 if none is positive. A local curvature describes one point; that a lower level has many valleys shows only
    over some distance.
    """
    greatest = 0.0
    for x, y in places:
        first = last = (y, grad_y(problem.f, x, y, batch))
        for _ in range(PROBES // len(places)):
            u = around(y)
            new = (u, grad_y(problem.f, x, u, batch))
            for point, gradient in (first, last):
                apart = subtract(new[0], point)
                square = float(dot(apart, apart))
                if square > 0:
                    greatest = max(greatest, -float(dot(subtract(new[1], gradient), apart)) / square)
            last = new
    return greatest


def worst(found: list[Curvature]) -> Curvature:
    """Returns the largest of each, and the slopes of the first."""
    highest = Curvature(*(max(c for c in column if math.isfinite(c)) for column in zip(*found)))
    return highest._replace(answer=min(c.answer for c in found), F_slope=found[0].F_slope, phi_slope=found[0].phi_slope)


def secant(old: Tensors, new: Tensors, before: Tensors, after: Tensors) -> float:
    """Returns |after - before| / |new - old|, 0 where nothing moved, infinite where a number is not finite."""
    apart = float(norm(subtract(new, old)))
    value = float(norm(subtract(after, before))) / apart if apart > 0 else 0.0
    return value if math.isfinite(value) else math.inf
