"""Basins of a lower level that is not convex: whether there is negative curvature, and minimisers below a known one."""

from __future__ import annotations

import torch
from torch import Tensor

from nas_moreau.bilevel.second_order.flat import FlatProblem, drawn_like, seeded
from nas_moreau.bilevel.second_order.implicit import solve_lower
from nas_moreau.bilevel.second_order.lower import DENSE, symmetric

PROBES = 8
"""Places around the start at which the lower level's curvature is looked at."""
STARTS = 12
"""Random starts of y."""
COORDINATES = 30
"""Unknowns of y up to which each coordinate is scanned for lower values."""
REACH = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
"""Distances of such a scan, in units of 1 + mean |y|."""
NEGATIVE = 1e-8
"""Negative curvature over the largest that counts."""


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


def deeper_basin(flat: FlatProblem, u: Tensor, w: Tensor) -> Tensor | None:
    """Returns a y with a clearly smaller f + g at x than w, from several starts; None if there is none.

    The starts are random ones around w, and where y has few entries the lowest point of a scan along each coordinate.
    """

    def height(v: Tensor) -> float:
        return flat.value(lambda at: flat.f(u, at) + flat.g(u, at), v)

    here = height(w)
    found, lowest = None, here - 1e-6 * max(1.0, abs(here))
    for start in _starts(flat, u, w):
        lower = solve_lower(flat, u, start)
        # a lower point counts though no minimum was reached from there: f may be unbounded below
        inside = lower.residual <= 1e-6 or flat.problem.constraint is None
        if inside and (value := height(lower.w)) < lowest:
            found, lowest = lower.w, value
    return found


def lower_along_coordinates(flat: FlatProblem, u: Tensor, w: Tensor) -> bool:
    """Whether a scan of f(x, .) along each coordinate meets a clearly lower value; only for few entries of y."""
    if len(w) > COORDINATES or not flat.smooth:
        return False
    here = flat.value(lambda v: flat.f(u, v), w)
    return flat.value(lambda v: flat.f(u, v), _scanned(flat, u, w)) < here - 1e-6 * max(1.0, abs(here))


def _starts(flat: FlatProblem, u: Tensor, w: Tensor) -> list[Tensor]:
    generator = seeded(2)
    spread = 1 + float(w.abs().mean())
    starts = [w + spread * 2.0 ** (k % 4 - 1) * drawn_like(w, generator) for k in range(STARTS)]
    return starts if len(w) > COORDINATES or not flat.smooth else [_scanned(flat, u, w), *starts]


def _scanned(flat: FlatProblem, u: Tensor, w: Tensor) -> Tensor:
    """Returns the lowest point that a scan along one coordinate after the other meets."""
    spread, scanned = 1 + float(w.abs().mean()), w.clone()
    for i in range(len(w)):
        best = flat.value(lambda v: flat.f(u, v), scanned)
        for reach in REACH:
            for sign in (1.0, -1.0):
                tried = scanned.clone()
                tried[i] = w[i] + sign * reach * spread
                value = flat.value(lambda v: flat.f(u, v), tried)
                if value < best:
                    scanned, best = tried, value
    return scanned
