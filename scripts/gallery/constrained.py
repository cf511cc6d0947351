"""Sets X and Y, nonsmooth terms, constraints that couple the levels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gallery.posed import F64, Posed, posed, scalar_minimum, t, zeros
from nas_moreau.bilevel import Bilevel
from nas_moreau.bilevel.prox import L1, project_ball, project_box, project_simplex


@posed
def upper_box() -> Posed:
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (x[0] - t(2.0, 0.3, -1.0)).square().sum() + 0.05 * y[0].square().sum(),
        f=lambda x, y, batch: 0.5 * (y[0] - x[0]).square().sum(),
        project_x=project_box(0.0, 1.0),
    )
    return Posed(
        problem, [t(0.5, 0.5, 0.5)], [zeros(3)], [[t(1.0, 0.3 / 1.1, 0.0)]], frozenset({"constrained"}), baseline=False
    )


@posed
def upper_simplex() -> Posed:
    """Mixing weights: x on the simplex, y* the weighted mean of three points, F wants y at one inside."""
    points = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]], dtype=F64)
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (y[0] - t(0.5, 1.0)).square().sum(),
        f=lambda x, y, batch: 0.5 * (x[0] @ (y[0] - points).square().sum(1)),
        project_x=lambda x: [project_simplex()(x)[0]],
    )
    start = torch.full((3,), 1 / 3, dtype=F64)
    return Posed(problem, [start], [zeros(2)], [[t(0.25, 0.25, 0.5)]], frozenset({"constrained"}), baseline=False)


@posed
def lower_box() -> Posed:
    target = t(0.55, -1.0, 0.33)
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (y[0] - target).square().sum() + 0.05 * x[0].square().sum(),
        f=lambda x, y, batch: 0.5 * (y[0] - x[0]).square().sum(),
        project_y=project_box(0.0, 1.0),
    )
    exact = t(0.5, 0.0, 0.3)
    return Posed(problem, [t(0.4, 0.4, 0.4)], [zeros(3)], [[exact]], frozenset({"constrained"}), baseline=False)


@posed
def lower_simplex() -> Posed:
    """y* = the projection of x onto the simplex, inside; the prior chooses the mean 0 of x."""
    target = t(0.2, 0.5, 0.3)
    eps = 0.1
    y_exact = (target + eps / 3) / (1 + eps)
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (y[0] - target).square().sum() + 0.5 * eps * x[0].square().sum(),
        f=lambda x, y, batch: 0.5 * (y[0] - x[0]).square().sum(),
        project_y=project_simplex(),
    )
    start = [torch.full((3,), 1 / 3, dtype=F64)]
    return Posed(problem, [zeros(3)], start, [[y_exact - 1 / 3]], frozenset({"constrained"}), [y_exact], baseline=False)


@posed
def lower_ball() -> Posed:
    """f = -x'y on the unit ball: y* = x / |x|."""
    target = t(3.0, 4.0) / 5
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (y[0] - target).square().sum() + 0.5 * (x[0].square().sum() - 4).square() / 16,
        f=lambda x, y, batch: -(x[0] @ y[0]),
        project_y=project_ball(1.0),
    )
    return Posed(problem, [t(1.0, 0.2)], [zeros(2)], [[2 * target]], frozenset({"constrained"}), baseline=False)


@posed
def lasso_two() -> Posed:
    """A weight e^x of an l1 norm; y* = soft(v, e^x); F wants |y| at values that fix x."""
    v = t(2.0, -1.0, 0.1)
    # F = .5 |y - (1.5, -.5, 0)|^2: y* = (1.5, -.5, 0) at weight .5
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (y[0] - t(1.5, -0.5, 0.0)).square().sum(),
        f=lambda x, y, batch: 0.5 * (y[0] - v).square().sum(),
        g=L1(weight=lambda x: [x[0].exp()]),
    )
    return Posed(problem, [t(-2.0)], [zeros(3)], [[t(math.log(0.5))]], frozenset({"nonsmooth"}), baseline=False)


def coupled(F: Any, f: Any, h: Any, x: list[Tensor], y: list[Tensor], exact: list[Tensor]) -> Posed:
    """Returns a problem whose lower level has the constraint h(x, y) <= 0."""
    problem = Bilevel(F=F, f=f, constraint=h)
    return Posed(problem, x, y, [exact], frozenset({"coupled", "constrained"}), baseline=False)


@posed
def coupled_bound() -> Posed:
    """y = max(0, x) from y >= x: x = y = .5."""
    return coupled(
        lambda x, y, batch: 0.5 * (x[0] - 1).square().sum() + 0.5 * y[0].square().sum(),
        lambda x, y, batch: 0.5 * y[0].square().sum(),
        lambda x, y, batch=None: x[0] - y[0],
        [t(0.0)], [t(0.0)], [t(0.5)],
    )  # fmt: skip


@posed
def coupled_budget() -> Posed:
    """min .5 |y - 2|^2 with sum(y) <= x: y_i = x / 3 while x < 6; F = .5 (x - 4)^2 + .5 |y|^2: x = 4 / (1 + 1/3)."""
    return coupled(
        lambda x, y, batch: 0.5 * (x[0] - 4).square().sum() + 0.5 * y[0].square().sum(),
        lambda x, y, batch: 0.5 * (y[0] - 2).square().sum(),
        lambda x, y, batch=None: y[0].sum() - x[0],
        [t(1.0)], [zeros(3)], [t(3.0)],
    )  # fmt: skip


@posed
def coupled_ball() -> Posed:
    """min -(y1 + y2) with |y|^2 <= x: y = sqrt(x/2) (1, 1); F = .5 (y1 - 1)^2 + .5 (y2 - 1)^2 + .05 (x - 1)^2."""
    exact = scalar_minimum(lambda u: ((u / 2).sqrt() - 1) ** 2 + 0.05 * (u - 1) ** 2, 0.5, 4.0)
    return coupled(
        lambda x, y, batch: 0.5 * (y[0] - 1).square().sum() + 0.05 * (x[0] - 1).square().sum(),
        lambda x, y, batch: -y[0].sum() + 0 * x[0].sum(),
        lambda x, y, batch=None: y[0].square().sum() - x[0],
        [t(1.0)], [t(0.5, 0.2)], [t(exact)],
    )  # fmt: skip


@posed
def coupled_inactive() -> Posed:
    """The constraint does not bind at the answer: y = x / 2, y <= x + 1."""
    return coupled(
        lambda x, y, batch: 0.5 * (x[0] - 1).square().sum() + 0.5 * y[0].square().sum(),
        lambda x, y, batch: 0.5 * (y[0] - 0.5 * x[0]).square().sum(),
        lambda x, y, batch=None: y[0] - x[0] - 1,
        [t(0.0)], [t(0.0)], [t(0.8)],
    )  # fmt: skip
