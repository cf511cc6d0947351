"""The lower level under h(x, y) <= 0: augmented Lagrangian, Newton's method on the KKT conditions, implicit gradient.

Multipliers follow Hestenes, Powell and Rockafellar, lambda <- max(0, lambda + rho h), until the active constraints are
known; then Newton's method on

    L_y = f_y + h_y' lambda = 0,    h_active = 0

reaches rounding error, and the hypergradient is F_x - ( L_xy v + h_x' m ) with

    [ L_yy  A' ] [ v ]   [ F_y ]
    [ A     0  ] [ m ] = [  0  ],    A = h_y of the active constraints.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nas_moreau.bilevel.second_order.flat import FlatProblem
from nas_moreau.bilevel.second_order.lower import Lower, newton, symmetric

ROUNDS = 40
PENALTY_FACTOR = 10.0
"""The first rho, in units of |f_yy| / |h_y|^2."""
MOST_GROWTH = 1e6
"""Largest rho over the first."""
KKT_STEPS = 12
ACCURATE = 1e-3
"""Relative change of the multipliers below which the active constraints are tried."""


class _System(NamedTuple):
    """The KKT conditions at a point, linearised.

    Attributes:
        matrix: As above.
        H, A: Its blocks L_yy and h_y.
        grad_w: L_y, differentiable in both leaves.
        h_active: The active constraints, differentiable in both leaves.
        leaf_u, leaf_w: The leaves.
        active: Numbers of the active constraints.
        h: All constraints, detached.
    """

    matrix: Tensor
    H: Tensor
    A: Tensor
    grad_w: Tensor
    h_active: Tensor
    leaf_u: Tensor
    leaf_w: Tensor
    active: Tensor
    h: Tensor


def solve_constrained(flat: FlatProblem, u: Tensor, w: Tensor, multipliers: Tensor | None = None) -> Lower:
    """Returns the minimiser of f(x, .) subject to h(x, .) <= 0 near w, with its multipliers.

    A constraint is active where its multiplier exceeds its slack.

    Args:
        flat: The problem.
        u: x.
        w: Where to start.
        multipliers: First guess; default 0.
    """
    begun, scale = _first_penalty(flat, u, w)
    lam = w.new_zeros(scale.shape) if multipliers is None else multipliers
    rho, violation = begun, math.inf
    found = None if multipliers is None else _polished(flat, u, w, lam)
    for _ in range(ROUNDS if found is None else 0):

        def augmented(v: Tensor, lam: Tensor = lam, rho: float = rho) -> Tensor:
            pushed = (lam + rho * flat.h(u, v)).clamp(min=0)
            return flat.f(u, v) + (pushed.square().sum() - lam.square().sum()) / (2 * rho)

        w = newton(flat, augmented, w).w
        with torch.no_grad():
            h = flat.h(u, w)
        new = (lam + rho * h).clamp(min=0)
        moved = float((new - lam).norm()) / max(float(new.norm()), 1e-8 * rho)
        before, violation = violation, float(torch.minimum(-h, new / rho).norm())
        lam = new
        if moved <= ACCURATE or violation <= ACCURATE * (1 + float(w.norm())):
            found = _polished(flat, u, w, lam)
            if found is not None:
                break
        if moved <= 1e-12 or violation <= 4 * flat.eps or not math.isfinite(violation):
            break
        if violation > 0.25 * before:
            if rho >= MOST_GROWTH * begun or (violation > 0.9 * before and rho > 1e3 * begun):
                break  # no point satisfies the constraints
            rho = min(4 * rho, MOST_GROWTH * begun)
    if found is not None:
        return _with_adjoint(flat, u, *found)
    # as far as the augmented Lagrangian came: the residual is that of the constraints alone
    return _with_adjoint(flat, u, w, lam, violation / (1 + float(w.norm())))._replace(curvature=math.nan)


def _first_penalty(flat: FlatProblem, u: Tensor, w: Tensor) -> tuple[float, Tensor]:
    """Returns the first rho, in the units of f over those of h squared, and h at the start."""
    system = _system(flat, u, w, None)
    bend, slope = float(system.H.diagonal().abs().mean()), float(system.A.square().sum(1).mean())
    if not bend:
        bend = float(system.grad_w.detach().norm()) / (1 + float(w.norm()))
    rho = PENALTY_FACTOR * bend / slope if slope else PENALTY_FACTOR
    return (rho if math.isfinite(rho) and rho > 0 else PENALTY_FACTOR), system.h


def _system(flat: FlatProblem, u: Tensor, w: Tensor, lam: Tensor | None) -> _System:
    """Returns the linearised KKT conditions; without multipliers those of f alone, and h_y of all constraints."""
    flat.count(2)
    with torch.enable_grad():
        leaf_u, leaf_w = u.detach().requires_grad_(), w.detach().requires_grad_()
        h = flat.h(leaf_u, leaf_w)
        if lam is None:
            active, lagrangian = torch.arange(len(h), device=h.device), flat.f(leaf_u, leaf_w)
        else:
            active = (lam > h.detach().abs()).nonzero().flatten()
            lagrangian = flat.f(leaf_u, leaf_w) + lam[active] @ h[active]
        lagrangian, h_active = lagrangian + 0 * leaf_w.sum(), h[active]
        grad_w = torch.autograd.grad(lagrangian, leaf_w, create_graph=True)[0]
    H, A = symmetric(flat.jacobian(grad_w, leaf_w)), flat.jacobian(h_active, leaf_w)
    m = len(active)
    matrix = torch.cat([torch.cat([H, A.T], 1), torch.cat([A, A.new_zeros(m, m)], 1)], 0)
    return _System(matrix, H, A, grad_w, h_active, leaf_u, leaf_w, active, h.detach())


def _polished(flat: FlatProblem, u: Tensor, w: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, float] | None:
    """Returns (w, multipliers, last step relative to |w|) by Newton's method on the KKT conditions.

    None where the active constraints turn out to be others: a multiplier becomes negative, or another is violated.
    """
    last = math.inf
    for _ in range(KKT_STEPS):
        system = _system(flat, u, w, lam)
        right = torch.cat([-system.grad_w.detach(), -system.h_active.detach()])
        if not torch.isfinite(system.matrix).all() or not torch.isfinite(right).all():
            return None
        step = torch.linalg.lstsq(system.matrix, right[:, None]).solution[:, 0]
        scale = float((system.A.T @ lam[system.active]).norm()) + float(right.norm())
        if float((system.matrix @ step - right).norm()) > 1e-8 * scale:
            return None  # no multipliers of these constraints balance f_y
        moved, changed = step[: len(w)], step[len(w) :]
        new = torch.zeros_like(lam)
        new[system.active] = lam[system.active] + changed
        size = 1 + float(w.norm())
        last = float(moved.norm()) / size
        slack = 1e-9 * size * (1 + float(system.A.norm()))
        inactive = torch.ones_like(lam, dtype=torch.bool)
        inactive[system.active] = False
        if last > 0.1 or bool((new < -1e-9 * (1 + new.abs().max() if len(new) else 0)).any()):
            return None
        w, lam = w + moved, new.clamp(min=0)
        if last <= 1e2 * flat.eps:
            with torch.no_grad():
                h = flat.h(u, w)
            outside = bool((h[inactive] > slack).any()) or bool((h[~inactive].abs() > slack).any())
            return None if outside else (w, lam, last)
    return None


def _with_adjoint(flat: FlatProblem, u: Tensor, w: Tensor, lam: Tensor, residual: float) -> Lower:
    """Returns the point with the curvature on the active constraints' tangent space, and the adjoint."""
    system = _system(flat, u, w, lam)
    n, m = len(w), len(system.active)
    inner = system.H
    if m:
        # the null space of A: right singular vectors beyond its rank
        _, sizes, rows = torch.linalg.svd(system.A, full_matrices=True)
        rank = int((sizes > 1e-10 * sizes.max()).sum())
        basis = rows[rank:].T
        inner = basis.T @ system.H @ basis
    curvature = 1.0  # a vertex: nothing is left to move in
    if inner.numel():
        values = torch.linalg.eigvalsh(symmetric(inner))
        curvature = float(values[0] / values.abs().max().clamp(min=1e-300))
        flat.nonconvex = flat.nonconvex or curvature < -1e-7

    def adjoint(F_y: Tensor) -> Tensor:
        solved = torch.linalg.lstsq(system.matrix, torch.cat([F_y, F_y.new_zeros(m)])[:, None]).solution[:, 0]
        correction = flat.product(system.grad_w, system.leaf_u, solved[:n])
        if m:
            correction = correction + flat.product(system.h_active, system.leaf_u, solved[n:])
        return -correction

    violated, slope = system.h_active.detach().abs(), system.A.norm(dim=1).clamp(min=1e-300)
    outside = float((violated / slope).max()) / (1 + float(w.norm())) if m else 0.0
    return Lower(w, residual, curvature, adjoint, lam, outside)
