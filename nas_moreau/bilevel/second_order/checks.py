"""What is known of a function of x near a point: curvature, kinks, lower places, whether its gradient is right.

All of it costs evaluations of the function alone, and all lengths are in units of each entry's own size, so that units
of x do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nas_moreau.bilevel.second_order.flat import drawn_like, seeded
from nas_moreau.bilevel.second_order.upper import NEAR_ZERO, Evaluate, Place

SMALL = 30
"""Unknowns of x up to which the curvature is measured whole."""
FLAT = 1e-10
"""Curvature over the largest, below which a direction counts as flat."""
LANCZOS = 12
"""Products with the second derivative of a function of many unknowns, from each of two starts."""
NEGATIVE = -1e-4
"""Curvature over the largest, below which a point is a maximum or saddle."""
RADII, RADII_ONE = (1e-2, 0.3, 2.0), (1.0, 4.0)
"""Distances at which lower places are looked for, in units of each entry's size and, if that is smaller, of 1."""
RADII_FLAT = (1e-2, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 1.2, 1.6, 2.5)
"""Those along directions that are flat."""


class Curvature(NamedTuple):
    """The second derivative at a point.

    Attributes:
        lowest: Smallest curvature over the largest in size; NaN where it was not measured.
        step: The Newton step, entry by entry relative to its size at its largest, flat directions left out; for
            many unknowns that along the gradient; NaN where it was not measured.
        decrease: What the Newton step is predicted to gain; NaN where it was not measured.
        move: The Newton step itself; 0 where it was not measured.
        direction: That of the smallest curvature.
        flat: Orthonormal directions in units of the sizes, (n, k), along which there is neither slope nor curvature;
            (n, 0) for many unknowns.
        level: Whether there is no curvature in any direction, so that a minimum and a plateau look alike.
    """

    lowest: float
    step: float
    decrease: float
    direction: Tensor
    flat: Tensor
    move: Tensor
    level: bool = False


def sizes_of(u: Tensor, origin: Tensor) -> Tensor:
    """Returns the size of every entry; at least a thousandth of the largest, or of how far it came; 1 if all are 0."""
    size = torch.maximum(u.abs(), NEAR_ZERO * (u - origin).abs())
    largest = float(size.max())
    return size.clamp(min=NEAR_ZERO * largest) if largest > 0 else torch.ones_like(u)


def curvature_at(evaluate: Evaluate, place: Place, size: Tensor, eps: float, noise: float) -> Curvature | None:
    """Returns the curvature by differences of gradients; None where a neighbour is not finite.

    Args:
        evaluate: The function.
        place: The point.
        size: Of each entry.
        eps, noise: Relative and absolute rounding error of the function.
    """
    n = len(place.u)
    if n > SMALL:
        return _extreme_curvature(evaluate, place, size, eps)
    h = eps ** (1 / 3)

    def row(i: int, h: float) -> Tensor | None:
        unit = torch.zeros_like(place.u)
        unit[i] = h * size[i]
        ends = [evaluate(place.u + sign * unit, place.carry) for sign in (1.0, -1.0)]
        if not all(end.finite for end in ends):
            return None
        return (ends[0].gradient - ends[1].gradient) * size / (2 * h)

    rows = [found for i in range(n) if (found := row(i, h)) is not None]
    if len(rows) < n:
        return None
    H = torch.stack(rows)
    H = 0.5 * (H + H.T)
    highest = float(H.abs().max())
    floor = max(FLAT * highest, 10 * eps ** (2 / 3) * highest, 1e3 * noise)
    widest = H.abs().max(1).values
    clear = widest > floor
    for i in range(n):  # rounding error or small units? a curvature is the same at another distance
        if not clear[i] and float(H[i, i].abs()) > 1e-3 * float(widest[i]) > 0:
            wider = row(i, 10 * h)
            clear[i] = wider is not None and abs(float(wider[i] - H[i, i])) <= 0.1 * abs(float(H[i, i]))
    if not bool(clear.any()):
        everywhere = torch.eye(n, dtype=size.dtype, device=size.device)
        return Curvature(0.0, 0.0, 0.0, size, everywhere, torch.zeros_like(size), level=True)
    # in units in which the largest curvature of every entry is 1
    unit = torch.where(clear, widest, highest).sqrt()
    values, vectors = torch.linalg.eigh(H / (unit[:, None] * unit[None, :]))
    slope = vectors.T @ (place.gradient * size / unit)
    flat = (values.abs() <= FLAT) & (slope.abs() <= 1e3 * noise / math.sqrt(highest))
    moves = torch.where(flat, 0.0, slope / values.abs().clamp(min=FLAT))
    relative = vectors @ moves / unit
    step, decrease = float(relative.abs().max()), 0.5 * float(slope @ moves)
    level = torch.linalg.qr(vectors[:, flat] / unit[:, None]).Q if bool(flat.any()) else vectors[:, flat]
    lowest = float(values[0]) / float(values.abs().max())
    return Curvature(lowest, step, decrease, vectors[:, 0] * size / unit, level, -relative * size)


class _Ritz(NamedTuple):
    """What Lanczos's method found: eigenvalues in increasing order, the direction of the first, q' H q of the start."""

    values: Tensor
    direction: Tensor
    along_start: float


def _extreme_curvature(evaluate: Evaluate, place: Place, size: Tensor, eps: float) -> Curvature | None:
    """Returns the smallest curvature that a few steps of Lanczos find, from the gradient and from a random direction.

    At a saddle from which the descent had no slope to leave, the gradient has no part along the negative curvature, and
    the entries along it are 0: the random direction takes the largest size for these.
    """
    steepness, n = float((place.gradient * size).norm()), len(place.u)
    drawn = drawn_like(place.u, seeded(6))
    found = _lanczos(evaluate, place, size, place.gradient * size if steepness else drawn, eps)
    if found is None:
        return None
    highest, lowest, direction = float(found.values.abs().max()), float(found.values[0]), found.direction
    other = _lanczos(evaluate, place, _wide(size), drawn, eps)
    if other is not None and float(other.values[0]) < NEGATIVE * float(other.values.abs().max()):
        bend = _bend_along(evaluate, place, other.direction, eps)
        if bend < NEGATIVE * float(other.values.abs().max()):
            highest, lowest, direction = float(other.values.abs().max()), bend, other.direction
    bend = max(abs(found.along_start), FLAT * float(found.values.abs().max()))
    along = steepness / bend if bend else 0.0
    relative, step = (lowest / highest if highest else 0.0), along / math.sqrt(n)
    nowhere, unknown = torch.zeros_like(direction), place.u.new_zeros(n, 0)
    return Curvature(relative, step, 0.5 * along * steepness, direction, unknown, nowhere, level=highest == 0)


def _wide(size: Tensor) -> Tensor:
    """Returns the sizes with the largest one for entries near 0, whose own is not known."""
    largest = float(size.max())
    return torch.where(size > 2 * NEAR_ZERO * largest, size, largest)


def _bend_along(evaluate: Evaluate, place: Place, direction: Tensor, eps: float) -> float:
    """Returns the second derivative along a direction by central differences; 0 where a neighbour is not finite."""
    h = eps ** (1 / 3) * math.sqrt(len(direction))
    ends = [evaluate(place.u + sign * h * direction, place.carry) for sign in (1.0, -1.0)]
    if not all(end.finite for end in ends):
        return 0.0
    return float((ends[0].gradient - ends[1].gradient) @ direction) / (2 * h)


def _lanczos(evaluate: Evaluate, place: Place, size: Tensor, begin: Tensor, eps: float) -> _Ritz | None:
    """Returns what a few steps of Lanczos find in units of the sizes; None where a neighbour is not finite."""
    reach, q = eps ** (1 / 3) * math.sqrt(len(begin)), begin
    basis: list[Tensor] = []
    images: list[Tensor] = []
    for _ in range(min(LANCZOS, len(begin))):
        before = float(q.norm())
        for other in basis:
            q = q - (q @ other) * other
        length = float(q.norm())
        if not length > 1e-10 * before:
            break
        q = q / length
        new = evaluate(place.u + reach * size * q, place.carry)
        if not new.finite:
            return None
        image = (new.gradient - place.gradient) * size / reach
        basis, images, q = [*basis, q], [*images, image], image
    Q, A = torch.stack(basis), torch.stack(images)
    T = Q @ A.T
    values, vectors = torch.linalg.eigh(0.5 * (T + T.T))
    return _Ritz(values, (Q.T @ vectors[:, 0]) * size, float(T[0, 0]))


def lower_place(evaluate: Evaluate, place: Place, direction: Tensor) -> Place | None:
    """Returns a lower place along a direction of negative curvature, None where there is none."""
    length = 0.01
    for _ in range(12):
        ends = [evaluate(place.u + sign * length * direction, place.carry) for sign in (1.0, -1.0)]
        found = min(ends, key=lambda end: end.value)
        if found.value < place.value:
            return found
        length *= 2
    return None


def newton_place(evaluate: Evaluate, place: Place, curvature: Curvature) -> Place | None:
    """Returns a lower place along the Newton step, None where there is none."""
    for length in (1.0, 0.1, 0.01):
        new = evaluate(place.u + length * curvature.move, place.carry)
        if new.finite and new.value < place.value - 0.1 * length * curvature.decrease:
            return new
    return None


def lower_place_around(
    evaluate: Evaluate,
    place: Place,
    size: Tensor,
    eps: float,
    project: Callable[[Tensor], Tensor] | None,
    directions: Tensor | None = None,
) -> Place | None:
    """Returns a place around this one that is clearly lower, None where none of a few is.

    On a set of many unknowns one of the directions is that of the smallest curvature.

    Args:
        evaluate: The function.
        place: The point.
        size: Of each entry.
        eps: Relative rounding error of the function.
        project: Onto X.
        directions: (n, k) of flat directions, in units of the sizes; default random ones.
    """
    generator, n = seeded(7), len(place.u)
    lengths = [radius * size for radius in RADII_FLAT]
    if directions is None:
        directions = torch.stack([drawn_like(place.u, generator) for _ in range(min(2, n))], 1)
        if project is not None and n <= SMALL:  # the curvature is not measured on a set
            directions = torch.cat([torch.eye(n, dtype=size.dtype, device=size.device), directions], 1)
            size = size.clamp(min=float(size.max()))
        elif project is not None:
            size = _wide(size)
            found = _lanczos(evaluate, place, size, drawn_like(place.u, generator), eps)
            if found is not None:
                directions = torch.cat([(found.direction / size)[:, None], directions], 1)
        lengths = [*(radius * size for radius in RADII), *(radius * size.clamp(min=1.0) for radius in RADII_ONE)]
    for length in lengths:
        for direction in directions.T:
            shift = length * direction / direction.abs().max()
            for sign in (1.0, -1.0):
                at = place.u + sign * shift
                new = evaluate(at if project is None else project(at), place.carry)
                expected = max(0.0, -float(place.gradient @ (new.u - place.u)))
                noise = 1e2 * eps * abs(place.value)
                if new.finite and new.value < place.value - 2 * expected - noise - 1e-9 * abs(place.value):
                    return new
    return None


def kink_radius(evaluate: Evaluate, place: Place, size: Tensor) -> float:
    """Returns the radius within which 0 is a mean of gradients (a Clarke-stationary kink), infinite if it is not.

    Gradient sampling (Burke, Lewis & Overton, 2005).
    """
    n, generator = len(place.u), seeded(3)
    if n > SMALL:
        return math.inf
    for radius in (1e-9, 1e-7, 1e-5):
        gradients = [place.gradient * size]
        for _ in range(2 * n + 2):
            drawn = 2 * torch.rand(n, generator=generator, dtype=torch.float64, device="cpu").to(place.u) - 1
            found = evaluate(place.u + radius * size * drawn, place.carry)
            if found.finite:
                gradients.append(found.gradient * size)
        stack = torch.stack(gradients)
        if float(_shortest(stack).norm()) <= 1e-3 * float(stack.norm(dim=1).max()):
            return radius
    return math.inf


def _shortest(points: Tensor) -> Tensor:
    """Returns the shortest vector in the convex hull of the rows (Gilbert's algorithm with exact line searches)."""
    z = points[points.norm(dim=1).argmin()]
    for _ in range(2000):
        gap = z - points[(points @ z).argmin()]
        length = float(gap @ gap)
        share = min(1.0, max(0.0, float(z @ gap) / length)) if length else 0.0
        if share <= 1e-12:
            break
        z = z - share * gap
    return z


def gradient_is_right(
    evaluate: Evaluate, place: Place, size: Tensor, eps: float, project: Callable[[Tensor], Tensor] | None
) -> bool:
    """Whether the gradient is the slope of the values between two points near the place.

    It is not where f or F has kinks, or a user's function hides a dependence from autograd. Simpson's rule is exact for
    polynomials of degree 4: a degenerate minimum does not look like a kink.
    """
    h = max(1e-4, eps ** (1 / 3))
    direction = drawn_like(place.u, seeded(0))
    for sign in (1.0, -1.0):  # the other side, where this one leaves the domain
        shifts = [place.u + sign * multiple * h * size * direction for multiple in (2, 3, 4)]
        near, middle, far = (evaluate(at if project is None else project(at), place.carry) for at in shifts)
        if near.finite and middle.finite and far.finite:
            moved, onward = far.u - near.u, middle.u - near.u
            slopes = [float(end.gradient @ moved) for end in (near, middle, far)]
            straight = float((onward - 0.5 * moved).norm()) <= 1e-6 * float(moved.norm())
            middle_slope = slopes[1] if straight else 0.5 * (slopes[0] + slopes[2])  # a projection bends the line
            expected = (slopes[0] + 4 * middle_slope + slopes[2]) / 6
            bend = abs(slopes[2] - slopes[0])
            noise = 100 * eps * max(abs(near.value), abs(far.value))
            return abs(far.value - near.value - expected) <= 0.05 * abs(expected) + 0.05 * bend + noise
    return False
