"""Lower levels with sets of minimisers, several basins, maxima and saddles; kinks of F."""

from __future__ import annotations

import math

import torch

from gallery.posed import F64, Posed, draw, posed, t, zeros
from nas_moreau.bilevel import Bilevel


@posed
def merely_convex_ten() -> Posed:
    """(18) of the paper: half of y is free below."""
    n = 10
    one = torch.ones(n, dtype=F64)
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (x[0] - y[1]).square().sum() + 0.5 * (y[0] - one).square().sum(),
        f=lambda x, y, batch: 0.5 * y[0].square().sum() - x[0] @ y[0],
    )
    return Posed(
        problem, [zeros(n)], [zeros(n), zeros(n)], [[one]], frozenset({"smooth", "flat"}), [one, one], baseline=False
    )


def least_squares_below(seed: int, rows: int, columns: int) -> Posed:
    """f = .5 |Ay - x|^2 with a wide A: a plane of minimisers, from which F chooses."""
    generator = draw(seed)
    A = torch.randn(rows, columns, generator=generator, dtype=F64) / math.sqrt(columns)
    u0, v0 = torch.randn(rows, generator=generator, dtype=F64), torch.randn(columns, generator=generator, dtype=F64)
    # min .5 |x - u0|^2 + .5 |y - v0|^2 with x = Ay
    v = torch.linalg.solve(A.T @ A + torch.eye(columns, dtype=F64), A.T @ u0 + v0)
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (x[0] - u0).square().sum() + 0.5 * (y[0] - v0).square().sum(),
        f=lambda x, y, batch: 0.5 * (A @ y[0] - x[0]).square().sum(),
    )
    return Posed(
        problem, [zeros(rows)], [zeros(columns)], [[A @ v]], frozenset({"smooth", "flat"}), [v], baseline=False
    )


@posed
def least_squares_wide() -> Posed:
    return least_squares_below(13, 3, 8)


@posed
def least_squares_very_wide() -> Posed:
    return least_squares_below(14, 2, 30)


@posed
def polyak_lojasiewicz() -> Posed:
    """f = u^2 + 3 sin^2 u with u = y - x: not convex, one minimiser, no other stationary point."""
    problem = Bilevel(
        F=lambda x, y, batch: (y[0] - 1).square().sum() + 0.1 * x[0].square().sum(),
        f=lambda x, y, batch: ((y[0] - x[0]).square() + 3 * torch.sin(y[0] - x[0]).square()).sum(),
    )
    return Posed(problem, [t(-3.0)], [t(2.0)], [[t(1 / 1.1)]], frozenset({"smooth", "basins"}))


def sine_of(n: int) -> Posed:
    """(19) of the paper with a = c_i = 2, from its start."""
    a, c = 2.0, 2.0
    K = min((-math.pi / 2 + 2 * k * math.pi for k in range(-3, 4)), key=lambda v: abs(v - 2 * a))
    exact = ((1 - n) * a + n * K) / (1 + n)
    problem = Bilevel(
        F=lambda x, y, batch: (x[0] - a).square().sum() + (y[0] - a - c).square().sum(),
        f=lambda x, y, batch: torch.sin(x[0] + y[0] - c).sum(),
    )
    return Posed(problem, [t(-6.0)], [zeros(n)], [[t(exact)]], frozenset({"smooth", "basins"}))


@posed
def sine_1() -> Posed:
    return sine_of(1)


@posed
def sine_5() -> Posed:
    return sine_of(5)


@posed
def sine_50() -> Posed:
    return sine_of(50)


def rastrigin_of(n: int) -> Posed:
    """f = sum u^2 + 1.5 (1 - cos 2 pi u), u = y - x: the deepest basin is y = x; F wants both at 1.3."""
    problem = Bilevel(
        F=lambda x, y, batch: (y[0] - 1.3).square().sum() + 0.1 * (x[0] - 1.3).square().sum(),
        f=lambda x, y, batch: ((y[0] - x[0]).square() + 1.5 * (1 - torch.cos(2 * math.pi * (y[0] - x[0])))).sum(),
    )
    start = torch.full((n,), 0.9, dtype=F64)
    return Posed(problem, [zeros(n)], [start], [[torch.full((n,), 1.3, dtype=F64)]], frozenset({"smooth", "basins"}))


@posed
def rastrigin_1() -> Posed:
    return rastrigin_of(1)


@posed
def rastrigin_2() -> Posed:
    return rastrigin_of(2)


@posed
def rastrigin_5() -> Posed:
    return rastrigin_of(5)


@posed
def start_at_a_maximum() -> Posed:
    """f = (y^2 - 1)^2 / 4 + x y^2 / 100 from y = 0, a maximum below: y*^2 = 1 - x / 50."""
    problem = Bilevel(
        F=lambda x, y, batch: ((x[0] - 1).square() + (y[0].square() - 1).square()).sum(),
        f=lambda x, y, batch: (0.25 * (y[0].square() - 1).square() + x[0] * y[0].square() / 100).sum(),
    )
    exact = 1 / (1 + 1 / 2500)
    return Posed(problem, [t(0.0)], [t(0.0)], [[t(exact)]], frozenset({"smooth", "basins"}))


@posed
def start_at_a_saddle() -> Posed:
    """f = (y1^2 - 1)^2 / 4 + (y2 - x)^2 / 2 from y1 = 0."""
    problem = Bilevel(
        F=lambda x, y, batch: (y[0][1] - 2) ** 2 + (y[0][0] ** 2 - x[0][0]) ** 2,
        f=lambda x, y, batch: 0.25 * (y[0][0] ** 2 - 1) ** 2 + 0.5 * (y[0][1] - x[0][0]) ** 2,
    )
    return Posed(problem, [t(0.0)], [zeros(2)], [[t(1.5)]], frozenset({"smooth", "basins"}))


@posed
def two_wells() -> Posed:
    """Two equal wells below; F prefers the one at y = +1 and pulls x to 2."""
    problem = Bilevel(
        F=lambda x, y, batch: ((y[0] - 1).square() + 0.5 * (x[0] - 2).square()).sum(),
        f=lambda x, y, batch: ((y[0].square() - 1).square() + 0.25 * (x[0] - 2).square() * y[0].square()).sum(),
    )
    return Posed(problem, [t(1.0)], [t(-0.5)], [[t(2.0)]], frozenset({"smooth", "basins"}))


@posed
def kink_above_at_zero() -> Posed:
    problem = Bilevel(
        F=lambda x, y, batch: (2 * y[0].abs() + 0.5 * (x[0] - 1).square()).sum(),
        f=lambda x, y, batch: 0.5 * (y[0] - x[0]).square().sum(),
    )
    return Posed(problem, [t(2.0, -1.0)], [zeros(2)], [[zeros(2)]], frozenset({"kinked"}))


@posed
def kink_above_elsewhere() -> Posed:
    problem = Bilevel(
        F=lambda x, y, batch: (2 * y[0].abs() + 0.5 * (x[0] - 3).square()).sum(),
        f=lambda x, y, batch: 0.5 * (y[0] - x[0]).square().sum(),
    )
    return Posed(problem, [t(-1.0, 2.0)], [zeros(2)], [[t(1.0, 1.0)]], frozenset({"kinked"}))
