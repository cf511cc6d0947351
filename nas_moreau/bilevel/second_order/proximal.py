"""The lower level with a nonsmooth g or a set Y: the fixed point of T(w) = Prox_s(w - s f_y(u, w)), and its adjoint."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nas_moreau.bilevel.second_order.flat import FlatProblem, Function, drawn_like, seeded
from nas_moreau.bilevel.second_order.lower import DENSE, Adjoint, Lower

STEPS = 5000
NEWTON_EVERY = 25
GROW_EVERY = 10
"""Steps without backtracking after which a longer step size is tried; until the first backtracking at every step."""
LONGEST = 1e30
"""Proximal gradient steps between two trials of a semismooth Newton step."""


class FixedPoint(NamedTuple):
    """Where the proximal gradient method ended: the point, the step size there, and |w - T(w)| relative to |w|."""

    w: Tensor
    step: float
    residual: float


def solve_proximal(flat: FlatProblem, u: Tensor, w: Tensor) -> Lower:
    """Returns the minimiser of f(x, .) + g(x, .) over Y near w, and the adjoint of its fixed-point equation.

    The adjoint differentiates the user's prox and projections by autograd; where they are not differentiable by it the
    hypergradient is not known, and the adjoint returns NaN.
    """
    for _ in range(3):
        w, step, residual = minimise_proximal(flat, lambda v: flat.f(u, v), u, w)
        moved, leaf_u, leaf_w = _fixed_point_map(flat, u, w, step)
        if moved is None or len(w) > DENSE:
            break
        J = flat.jacobian(moved, leaf_w)
        if not torch.isfinite(J).all():
            moved = None
            break
        matrix = torch.eye(len(w), dtype=J.dtype, device=J.device) - J
        # T is a product of a positive semidefinite and a symmetric matrix: the eigenvalues are real
        values, vectors = torch.linalg.eig(matrix)
        lowest = int(values.real.argmin())
        curvature = float(values.real[lowest]) / float(values.abs().max().clamp(min=1e-300))
        if curvature >= -1e-7:
            return Lower(w, residual, curvature, _dense_adjoint(flat, matrix, curvature, moved, leaf_u))
        flat.nonconvex = True  # a maximum or saddle: leave it
        push = vectors[:, lowest].real
        w = flat.prox(u, w + 1e-2 * (1 + float(w.norm())) * push / push.norm().clamp(min=1e-300), step).detach()
    if moved is None:
        return Lower(w, residual, math.nan, lambda F_y: torch.full_like(u, math.nan))
    if len(w) <= DENSE:
        return Lower(w, residual, curvature, _dense_adjoint(flat, matrix, curvature, moved, leaf_u))
    bend = _contraction(flat, moved, leaf_w)
    return Lower(w, residual, bend, _iterated_adjoint(flat, moved, leaf_u, leaf_w))


def _fixed_point_map(flat: FlatProblem, u: Tensor, w: Tensor, step: float) -> tuple[Tensor | None, Tensor, Tensor]:
    """Returns T(w), differentiable in both leaves, and the leaves; None for it where autograd has no derivative."""
    grad_w, (leaf_u, leaf_w) = flat.gradient_with_graph(flat.f, u, w, wrt=1)
    with torch.enable_grad():
        try:
            moved = flat.prox(leaf_u, leaf_w - step * grad_w, step)
        except RuntimeError:
            return None, leaf_u, leaf_w
    return (moved if moved.requires_grad else None), leaf_u, leaf_w


def _dense_adjoint(flat: FlatProblem, matrix: Tensor, curvature: float, moved: Tensor, leaf_u: Tensor) -> Adjoint:
    """Returns F_y -> (dT/du)' v with matrix' v = F_y."""

    def adjoint(F_y: Tensor) -> Tensor:
        if curvature > 1e-12:
            v = torch.linalg.solve(matrix.T, F_y)
        else:
            v = torch.linalg.lstsq(matrix.T, F_y[:, None]).solution[:, 0]
        return flat.product(moved, leaf_u, v)

    return adjoint


def _iterated_adjoint(flat: FlatProblem, moved: Tensor, leaf_u: Tensor, leaf_w: Tensor) -> Adjoint:
    """Returns F_y -> (dT/du)' v with v the limit of v <- F_y + (dT/dw)' v; NaN where it has none."""

    def adjoint(F_y: Tensor) -> Tensor:
        v = F_y
        for _ in range(2000):
            new = F_y + flat.product(moved, leaf_w, v)
            if float((new - v).norm()) <= 10 * flat.eps * float(new.norm()):
                return flat.product(moved, leaf_u, new)
            v = new
        return torch.full_like(leaf_u, math.nan)

    return adjoint


def _contraction(flat: FlatProblem, moved: Tensor, leaf_w: Tensor) -> float:
    """Returns an estimate of 1 - the largest eigenvalue of dT/dw, by power iteration."""
    v, size = drawn_like(leaf_w, seeded(5)), 1.0
    for _ in range(30):
        v = v / v.norm().clamp(min=1e-300)
        v = flat.product(moved, leaf_w, v)
        size = float(v.norm())
    return 1 - size


def minimise_proximal(flat: FlatProblem, smooth: Function, u: Tensor, w: Tensor) -> FixedPoint:
    """Returns a minimiser of smooth(w) + g(u, w) over Y near w.

    FISTA with restarts and backtracking (Beck & Teboulle, 2009; O'Donoghue & Candes, 2015); now and then a semismooth
    Newton step on w = T(w), kept where it brings w closer to its image.
    """
    step, weight, previous, point = 1.0, 1.0, w, w
    relative, size, easy, searched = math.inf, 0.0, 0, False
    for k in range(STEPS):
        next_weight = 0.5 * (1 + math.sqrt(1 + 4 * weight * weight))
        ahead = point + (weight - 1) / next_weight * (point - previous)
        base, (gradient,) = flat.gradients(smooth, ahead)
        if not math.isfinite(base) or not torch.isfinite(gradient).all():
            return FixedPoint(point, step, math.inf)
        size = max(size, abs(base), float(gradient.norm() * ahead.norm()))
        if easy >= GROW_EVERY or (not searched and k):
            step, easy = min(2 * step, LONGEST), 0
        slack = 10 * flat.eps * size
        new = _proximal(flat, u, ahead - step * gradient, step)
        while not _sufficient(flat, smooth, base + slack, gradient, ahead, new, step):
            step, easy, searched = step / 2, 0, True
            if step < 1e-14:
                return FixedPoint(point, step, math.inf)
            new = _proximal(flat, u, ahead - step * gradient, step)
        easy += 1
        assert new is not None
        relative = float((new - ahead).norm()) / max(float(new.norm()), 1e-3)
        uphill = float((ahead - new) @ (new - point)) > 0
        previous, point, weight = point, new, next_weight
        if uphill:
            previous, weight = point, 1.0
        if relative <= 4 * flat.eps and (searched or relative == 0):
            break
        if (k + 1) % NEWTON_EVERY == 0 and len(w) <= DENSE:
            found = _semismooth_step(flat, smooth, u, point, step)
            if found is not None:
                previous = point = found
                weight = 1.0
    return FixedPoint(point.detach(), step, relative)


def _proximal(flat: FlatProblem, u: Tensor, w: Tensor, step: float) -> Tensor | None:
    """Returns the prox; None where g's is not defined for so large a step (a weakly convex g raises ValueError)."""
    with torch.no_grad():
        try:
            return flat.prox(u, w, step)
        except ValueError:
            return None


def _sufficient(
    flat: FlatProblem, smooth: Function, base: float, gradient: Tensor, ahead: Tensor, new: Tensor | None, step: float
) -> bool:
    """Whether the quadratic model of the step size lies above the function at the new point."""
    if new is None:
        return False
    moved = new - ahead
    return flat.value(smooth, new) <= base + float(gradient @ moved) + float(moved @ moved) / (2 * step)


def _semismooth_step(flat: FlatProblem, smooth: Function, u: Tensor, w: Tensor, step: float) -> Tensor | None:
    """Returns w - (I - dT/dw)^-1 (w - T(w)) if it is closer to its image than w is; None if not."""

    def image(at: Tensor) -> tuple[Tensor, Tensor]:
        gradient, (leaf,) = flat.gradient_with_graph(smooth, at, wrt=0)
        with torch.enable_grad():
            return flat.prox(u, leaf - step * gradient, step), leaf

    try:
        moved, leaf = image(w)
        J = flat.jacobian(moved, leaf)
        rest = w - moved.detach()
        matrix = torch.eye(len(w), dtype=J.dtype, device=J.device) - J
        tried = w - torch.linalg.lstsq(matrix, rest[:, None]).solution[:, 0]
        after, _ = image(tried)
    except RuntimeError:  # the prox is not differentiable by autograd
        return None
    closer = float((tried - after.detach()).norm()) < 0.5 * float(rest.norm())
    return after.detach() if closer else None
