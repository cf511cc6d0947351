"""The smooth lower level solved to rounding error at a fixed x, and the implicit gradient that follows from it.

Newton's method with dense second derivatives up to `DENSE` unknowns, truncated conjugate gradients above. Maxima and
saddles are left along negative curvature. proximal.py and constrained.py hold the other two kinds of lower level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nas_moreau.bilevel.second_order.flat import FlatProblem, Function, drawn_like, seeded

Adjoint = Callable[[Tensor], Tensor]

DENSE = 400
"""Unknowns up to which second derivatives are formed as matrices."""

NEWTON_STEPS = 100
CG_STEPS = 2000

SINGULAR = 1e-9
"""Smallest curvature over the largest, below which a minimiser counts as one of a set."""


class Lower(NamedTuple):
    """A stationary point of the lower level at x.

    Attributes:
        w: y as a vector.
        residual: What is left of the optimality condition: the length of the last step relative to |y|.
        curvature: Smallest curvature over the largest at w (on the active constraints' tangent space); NaN if unknown.
        adjoint: F_y -> the correction that makes F_x the hypergradient, a vector like x; NaN where it is not defined.
        multipliers: Of the constraints h <= 0, None without.
        outside: Distance of w from where its active constraints are 0, by their gradients, relative to |y|. It is large
            where these vanish: the multipliers then balance f_y far from the minimiser.
    """

    w: Tensor
    residual: float
    curvature: float
    adjoint: Adjoint
    multipliers: Tensor | None = None
    outside: float = 0.0

    @property
    def error(self) -> float:
        """The larger of residual and distance from the constraints."""
        return max(self.residual, self.outside)

    @property
    def definite(self) -> bool:
        """Whether w is an isolated minimiser, as far as second derivatives show."""
        return self.curvature > SINGULAR


class Minimum(NamedTuple):
    """Where a minimisation ended.

    Attributes:
        w: The point.
        residual: Length of the last Newton step relative to |w|; infinite where numbers were not finite.
        curvature: Smallest curvature over the largest there.
    """

    w: Tensor
    residual: float
    curvature: float


def solve_smooth(flat: FlatProblem, u: Tensor, w: Tensor) -> Lower:
    """Returns the minimiser of f(x, .) downhill from w."""
    w, residual, curvature = newton(flat, lambda v: flat.f(u, v), w)
    if 0 < curvature <= SINGULAR and len(w) <= DENSE:
        curvature = _in_other_units(flat, u, w)
    grad_w, (leaf_u, leaf_w) = flat.gradient_with_graph(flat.f, u, w, wrt=1)
    inverse = _inverse(flat, grad_w, leaf_w)

    def adjoint(F_y: Tensor) -> Tensor:
        return -flat.product(grad_w, leaf_u, inverse(F_y))

    return Lower(w, residual, curvature, adjoint)


def _in_other_units(flat: FlatProblem, u: Tensor, w: Tensor) -> float:
    """Returns the smallest curvature over the largest in units of y in which every entry's own curvature is 1.

    It is 0 where the smallest one is rounding error, or changes between w and points beside it: a set of minimisers.
    """
    generator, found = seeded(10), []
    for shift in (0.0, 1e-3, -1e-3):
        at = w + shift * (w.abs() + 1e-3 * w.abs().max()) * drawn_like(w, generator)
        gradient, (leaf,) = flat.gradient_with_graph(lambda v: flat.f(u, v), at, wrt=0)
        H = symmetric(flat.jacobian(gradient, leaf))
        unit = H.diagonal().abs().sqrt()
        if not torch.isfinite(H).all() or not bool((unit > 0).all()):
            return 0.0
        values = torch.linalg.eigvalsh(H / (unit[:, None] * unit[None, :]))
        found.append(torch.cat([values[:1] / values[-1], H.diagonal() / H.diagonal().abs().max()]))
    here = found[0]
    same = all(bool(((other - here).abs() <= 0.1 * here.abs()).all()) for other in found[1:])
    return float(here[0]) if same and float(here[0]) > 1e3 * flat.eps else 0.0


def _inverse(flat: FlatProblem, gradient: Tensor, leaf: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns v -> H^-1 v with H the derivative of a gradient; NaN where H is singular."""
    if len(leaf) <= DENSE:
        H = symmetric(flat.jacobian(gradient, leaf))
        factor, pivots, failed = torch.linalg.lu_factor_ex(H)

        def solve(v: Tensor) -> Tensor:
            if int(failed):
                return torch.full_like(v, math.nan)
            return torch.linalg.lu_solve(factor, pivots, v[:, None])[:, 0]

        return solve

    def iterate(v: Tensor) -> Tensor:
        found = conjugate_gradients(lambda d: flat.product(gradient, leaf, d), v, 10 * flat.eps)
        # a right-hand side outside the range of H: the lower level has a set of minimisers, and F chooses among them
        return found.solution if found.residual <= 1e-6 else torch.full_like(v, math.nan)

    return iterate


def newton(flat: FlatProblem, function: Function, w: Tensor, steps: int = NEWTON_STEPS) -> Minimum:
    """Returns a minimiser of a smooth function downhill from w.

    Newton's method with the absolute values of the eigenvalues (dense) or truncated conjugate gradients (large), and a
    line search on the function. A maximum or saddle is left along the most negative curvature that was met.
    """
    value, residual, curvature, first = flat.value(function, w), math.inf, math.nan, math.nan
    stalled = 0
    for k in range(steps):
        gradient, (leaf,) = flat.gradient_with_graph(function, w, wrt=0)
        slope = gradient.detach()
        steepness = float(slope.norm())
        if not math.isfinite(steepness) or not math.isfinite(value):
            return Minimum(w, math.inf, math.nan)
        first = steepness if k == 0 else first
        size = 1 + float(w.norm())
        if len(w) <= DENSE:
            H = flat.jacobian(gradient, leaf)
            if not torch.isfinite(H).all():
                return Minimum(w, math.inf, math.nan)
            move, curvature, downhill = _dense_step(H, slope, size)
        else:
            # as accurate as the quadratic model is good
            forcing = max(1e-10, min(1e-2, math.sqrt(steepness / first))) if first else 1e-10
            apply = lambda d, gradient=gradient, leaf=leaf: flat.product(gradient, leaf, d)  # noqa: E731
            found = conjugate_gradients(apply, -slope, forcing)
            move, curvature, downhill = found.solution, found.curvature, found.lowest
        length_of_move = float(move.norm())
        residual = length_of_move / (float(w.norm()) + 1e-3 * max(1.0, float(w.norm())))
        decrement = -float(slope @ move)
        settled = decrement <= 4 * flat.eps**2 * max(abs(value), 1e-300) or residual <= 8 * flat.eps
        if curvature < -max(1e-7, 10 * flat.eps):
            flat.nonconvex = True
            if settled or decrement < 1e-6 * max(abs(value), 1e-300):
                left = _leave(flat, function, w, value, downhill * (1.0 if float(downhill @ slope) <= 0 else -1.0))
                if left is None:
                    return Minimum(w, residual, curvature)
                w, value = left
                continue
            if length_of_move > size:  # the model says nothing about other basins
                move, decrement = move * (size / length_of_move), decrement * (size / length_of_move)
        if settled and (k or residual == 0):
            break
        searched = _search(flat, function, w, value, move, decrement)
        if searched is None:
            break
        stalled = stalled + 1 if searched[1] >= value else 0
        w, value = searched
        if stalled >= 3:
            break
    return Minimum(w.detach(), residual, curvature)


def _search(
    flat: FlatProblem, function: Function, w: Tensor, value: float, move: Tensor, decrement: float
) -> tuple[Tensor, float] | None:
    """Returns a lower point on the line and its value; None where there is none.

    Near the minimum differences of the function are rounding error: full steps are taken there.
    """
    noise = flat.eps * abs(value)
    length = 1.0
    for _ in range(60):
        new = flat.value(function, w + length * move)
        if new <= value - 1e-4 * length * decrement or (new <= value + 4 * noise and decrement <= 1e3 * noise):
            return w + length * move, new
        length /= 2
    return None


def _dense_step(H: Tensor, slope: Tensor, size: float) -> tuple[Tensor, float, Tensor]:
    """Returns the step with the eigenvalues made positive, the least curvature over the largest, and its direction.

    Along flat directions the step is the slope, at most `size`.
    """
    H = symmetric(H)
    values, vectors = torch.linalg.eigh(H)
    highest = float(values.abs().max())
    if highest > 0 and abs(float(values[0])) <= SINGULAR * highest and bool((H.diagonal() > 0).all()):
        unit = H.diagonal().sqrt()
        inner, columns = torch.linalg.eigh(H / (unit[:, None] * unit[None, :]))
        if float(inner[0]) > 1e-13 * float(inner[-1]):  # units of y, or a bad condition that can still be solved
            step = columns @ ((columns.T @ (slope / unit)) / inner) / unit
            return -step, max(float(values[0]) / highest, 1e-300), vectors[:, 0]
    along, floor = vectors.T @ slope, max(1e-12 * highest, 1e-300)
    bends = values.abs() > floor
    step = torch.where(bends, along / values.abs().clamp(min=floor), along.sign() * along.abs().clamp(max=size))
    return -vectors @ step, float(values[0]) / highest if highest else 0.0, vectors[:, 0]


def _leave(
    flat: FlatProblem, function: Function, w: Tensor, value: float, direction: Tensor
) -> tuple[Tensor, float] | None:
    """Returns a lower point on a line of negative curvature, None where there is none."""
    best, lowest, length = None, value, 1e-3 * (1 + float(w.norm()))
    for _ in range(30):
        found = [(flat.value(function, w + sign * length * direction), sign * length) for sign in (1.0, -1.0)]
        new, moved = min(found)
        if new >= lowest:
            break
        best, lowest = w + moved * direction, new
        length *= 2
    return None if best is None else (best, lowest)


class Solved(NamedTuple):
    """What conjugate gradients came to.

    Attributes:
        solution: A^-1 b, or the iterate before negative curvature was met.
        residual: |b - A solution| / |b|.
        curvature: Smallest curvature met over the largest.
        lowest: The direction of the smallest.
    """

    solution: Tensor
    residual: float
    curvature: float
    lowest: Tensor


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor], b: Tensor, tolerance: float, steps: int = CG_STEPS
) -> Solved:
    """Returns A^-1 b for a symmetric A; negative curvature ends the iteration.

    Args:
        apply: v -> A v.
        b: The right-hand side. Where it is 0 the curvature is that of a random direction.
        tolerance: On the relative residual.
        steps: Maximum number of products.
    """
    z, r, begin = torch.zeros_like(b), b.clone(), float(b @ b)
    if begin == 0:
        q = drawn_like(b, seeded(4))
        q = q / q.norm()
        image = apply(q)
        size = float(image.norm())
        return Solved(z, 0.0, float(q @ image) / size if size else 0.0, q)
    p, rr, least, most, lowest = r.clone(), begin, math.inf, 0.0, b / math.sqrt(begin)
    for _ in range(min(steps, 10 * len(b))):
        image = apply(p)
        pp, bend = float(p @ p), float(p @ image)
        most = max(most, abs(bend) / pp)
        if bend / pp < least:
            least, lowest = bend / pp, p / math.sqrt(pp)
        if not bend > 1e-14 * most * pp:
            z = z if float(z @ z) else b / max(most, 1e-300)
            break
        share = rr / bend
        z, r = z + share * p, r - share * image
        new = float(r @ r)
        if new <= tolerance**2 * begin:
            rr = new
            break
        p, rr = r + (new / rr) * p, new
    return Solved(z, math.sqrt(rr / begin), least / most if most else 0.0, lowest)


def symmetric(matrix: Tensor) -> Tensor:
    """Returns the symmetric part of a matrix."""
    return 0.5 * (matrix + matrix.T)
