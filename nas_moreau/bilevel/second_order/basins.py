"""Basins of a lower level that is not convex: whether there is negative curvature, minimisers not above a known one."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from nas_moreau.bilevel.second_order.flat import FlatProblem, drawn_like, seeded
from nas_moreau.bilevel.second_order.implicit import solve_lower
from nas_moreau.bilevel.second_order.lower import DENSE, conjugate_gradients, symmetric

PROBES = 8
"""Places around the start at which the lower level's curvature is looked at."""
STARTS = 12
"""Random starts of y."""
COORDINATES = 30
"""Unknowns of y up to which each coordinate is scanned for lower values."""
REACH = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
"""Distances of such a scan, in units of 1 + mean |y|; if mean |y| is small also in units of that."""
FEW = 0.1
"""Mean |y| below which it is small."""
NEGATIVE = 1e-8
"""Negative curvature over the largest that counts."""
SADDLE_STEPS = 40
"""Products with the second derivative that look for negative curvature at a minimiser of many unknowns."""
LOWER, SAME = 1e-8, 1e-12
"""Difference of two heights that counts, and the one that does not, in units of the rise of f around the minimiser."""


class Basins(NamedTuple):
    """Other minimisers of the lower level: a deeper one or None, and those as deep as a known one, least F first."""

    deeper: Tensor | None
    others: list[Tensor]


def looks_convex(flat: FlatProblem, u: Tensor, w: Tensor) -> bool:
    """Whether f(x, .) shows no negative curvature at the start and around it."""
    generator = seeded(1)
    for k in range(PROBES):
        radius = 0.0 if k == 0 else 10.0 ** (0.4 * k - 1.4)
        at_u, at_w = flat.onto_x(u + radius * drawn_like(u, generator)), w + radius * drawn_like(w, generator)
        gradient, (leaf,) = flat.gradient_with_graph(lambda v, at=at_u: flat.f(at, v), at_w, wrt=0)
        if not torch.isfinite(gradient.detach()).all():
            continue
        if len(w) <= DENSE:
            H = flat.jacobian(gradient, leaf)
            if not torch.isfinite(H).all():
                continue
            values = torch.linalg.eigvalsh(symmetric(H))
            lowest, highest = float(values[0]), float(values.abs().max())
        else:
            directions = [drawn_like(w, generator) for _ in range(2)]
            bends = [float(d @ flat.product(gradient, leaf, d)) / float(d @ d) for d in directions]
            lowest, highest = min(bends), max(map(abs, bends))
        if lowest < -max(NEGATIVE, 10 * flat.eps) * highest:
            return False
    return True


def not_convex_along_coordinates(flat: FlatProblem, u: Tensor, w: Tensor) -> bool:
    """Whether f(x, .) is not convex on a line along one of the coordinates, by values; only for few entries of y."""
    if len(w) > COORDINATES:
        return False
    for i in range(len(w)):
        line = [(s, value) for s, value in _along(flat, u, w, i) if math.isfinite(value)]
        slopes, sizes = [], []
        for (s, a), (t, b) in pairwise(line):
            slopes.append((b - a) / (t - s))
            sizes.append(1e-6 * abs(slopes[-1]) + 10 * flat.eps * max(abs(a), abs(b)) / (t - s))
        if any(a - b > p + q for (a, b), (p, q) in zip(pairwise(slopes), pairwise(sizes))):
            return True
    return False


def other_basins(flat: FlatProblem, u: Tensor, w: Tensor) -> Basins:
    """Returns minimisers of f + g at x that are not higher than w, from several starts.

    The starts are random ones around w, and where y has few entries other wells along the coordinates; for many
    unknowns both sides of w along negative curvature.
    """

    def height(v: Tensor) -> float:
        return flat.value(lambda at: flat.f(u, at) + flat.g(u, at), v)

    starts = _starts(flat, u, w) if len(w) <= DENSE else _beside_a_saddle(flat, u, w)
    here, lowest, deeper = height(w), math.inf, None
    rises = sorted(rise for start in starts if math.isfinite(rise := abs(height(start) - here)))
    rise, noise = rises[len(rises) // 4] if rises else 0.0, 1e2 * flat.eps * abs(here)
    lowest = here - max(LOWER * rise, noise)
    level: list[tuple[float, Tensor]] = []
    for start in starts:
        lower = solve_lower(flat, u, start)
        accurate = lower.residual <= 1e-6
        # a lower point counts though no minimum was reached from there: f may be unbounded below
        if not accurate and flat.problem.constraint is not None:
            continue
        value = height(lower.w)
        if value < lowest:
            deeper, lowest = lower.w, value
        elif accurate and lower.curvature > 0 and abs(value - here) <= max(SAME * rise, noise):
            apart = [float((lower.w - known).norm()) for known in (w, *(point for _, point in level))]
            if min(apart) > 1e-4 * float(w.norm() + lower.w.norm()):
                level.append((flat.value(flat.F, u, lower.w), lower.w))
    level.sort(key=lambda pair: pair[0])
    return Basins(deeper, [point for _, point in level])


def _starts(flat: FlatProblem, u: Tensor, w: Tensor) -> list[Tensor]:
    generator = seeded(2)
    spread = 1 + float(w.abs().mean())
    starts = [w + spread * 2.0 ** (k % 4 - 1) * drawn_like(w, generator) for k in range(STARTS)]
    if len(w) > COORDINATES or not flat.smooth:
        return starts
    return [_scanned(flat, u, w), *starts, *_wells(flat, u, w)]


def _beside_a_saddle(flat: FlatProblem, u: Tensor, w: Tensor) -> list[Tensor]:
    """Returns two points along negative curvature of f(x, .) that a random direction finds; none if it finds none."""
    if not flat.smooth:
        return []
    gradient, (leaf,) = flat.gradient_with_graph(lambda v: flat.f(u, v), w, wrt=0)
    drawn = drawn_like(w, seeded(12))
    found = conjugate_gradients(lambda d: flat.product(gradient, leaf, d), drawn, 1e-3, SADDLE_STEPS)
    if not found.curvature < -max(1e-7, 10 * flat.eps):
        return []
    push = 1e-2 * (1 + float(w.norm())) * found.lowest
    return [w + push, w - push]


def _along(flat: FlatProblem, u: Tensor, w: Tensor, i: int) -> list[tuple[float, float]]:
    """Returns pairs (place, f(x, y)) with the i-th entry of y at places around w's, in increasing order."""
    size = float(w.abs().mean())
    spreads = [1 + size] if size > FEW else [1 + size, size]  # y may be small as a whole
    shifts = {sign * reach * spread for reach in REACH for spread in spreads for sign in (1.0, -1.0)}
    found = []
    for shift in sorted(shifts | {0.0}):
        tried = w.clone()
        tried[i] += shift
        found.append((float(tried[i]), flat.value(lambda v: flat.f(u, v), tried)))
    return found


def _wells(flat: FlatProblem, u: Tensor, w: Tensor) -> list[Tensor]:
    """Returns w with one entry moved to the lowest other well on its line, for each that has one."""
    wells = []
    for i in range(len(w)):
        line, here = _along(flat, u, w, i), float(w[i])
        inner = zip(line, line[1:], line[2:])
        others = [(b, s) for (_, a), (s, b), (_, c) in inner if b < a and b < c and s != here]
        if others:
            moved = w.clone()
            moved[i] = min(others)[1]
            wells.append(moved)
    return wells


def _scanned(flat: FlatProblem, u: Tensor, w: Tensor) -> Tensor:
    """Returns the lowest point that a scan along one coordinate after the other meets."""
    scanned = w.clone()
    for i in range(len(w)):
        line = _along(flat, u, scanned, i)
        scanned[i] = min(line, key=lambda pair: pair[1])[0]
    return scanned
