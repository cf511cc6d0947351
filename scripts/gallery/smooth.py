"""Smooth problems with one minimiser below: conditioning, units, curved and flat levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gallery.posed import F64, Posed, draw, posed, scalar_minimum, spectrum, t, zeros
from nas_moreau.bilevel import Bilevel


def quadratic_of(A: Tensor, B: Tensor, z: Tensor, kinds: set[str]) -> Posed:
    """F = .5 |x - z|^2 + .5 y'By, f = .5 y'Ay - x'y: y* = A^-1 x, (I + A^-1 B A^-1) x = z."""
    n = len(z)
    inverse = torch.linalg.inv(A)
    exact = torch.linalg.solve(torch.eye(n, dtype=F64) + inverse @ B @ inverse, z)
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (x[0] - z).square().sum() + 0.5 * y[0] @ B @ y[0],
        f=lambda x, y, batch: 0.5 * y[0] @ A @ y[0] - x[0] @ y[0],
    )
    return Posed(problem, [zeros(n)], [zeros(n)], [[exact]], frozenset({"smooth", *kinds}), [inverse @ exact])


@posed
def quadratic_scalar() -> Posed:
    one = torch.ones(1, 1, dtype=F64)
    return quadratic_of(one, one, t(1.0), set())


@posed
def quadratic_condition_10() -> Posed:
    return quadratic_of(spectrum(8, 10, 1), torch.eye(8, dtype=F64), torch.ones(8, dtype=F64), set())


@posed
def quadratic_condition_100() -> Posed:
    return quadratic_of(spectrum(10, 100, 2), torch.eye(10, dtype=F64), torch.ones(10, dtype=F64), {"scaled"})


@posed
def quadratic_condition_10000() -> Posed:
    A = spectrum(6, 1e4, 3)
    return quadratic_of(A, A @ A, torch.ones(6, dtype=F64), {"scaled"})


@posed
def units_of_x() -> Posed:
    """y* = (x1 / 1000, 1000 x2)."""
    scale, target = t(1e-3, 1e3), t(2.0, 3.0)
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (y[0] - target).square().sum(),
        f=lambda x, y, batch: 0.5 * (y[0] - scale * x[0]).square().sum(),
    )
    return Posed(problem, [zeros(2)], [zeros(2)], [[target / scale]], frozenset({"smooth", "scaled"}))


@posed
def units_of_two_tensors() -> Posed:
    """The same with each unit in a separate tensor."""
    problem = Bilevel(
        F=lambda x, y, batch: (
            0.5 * (y[0] - 1).square().sum() + 0.5 * (y[1] + 2).square().sum() + 5e-5 * x[1].square().sum()
        ),
        f=lambda x, y, batch: 0.5 * (y[0] - 100 * x[0]).square().sum() + 0.5 * (y[1] - 0.01 * x[1]).square().sum(),
    )
    exact = [t(0.01, 0.01), t(*[-2 * 0.01 / (1e-4 + 1e-4)] * 3)]
    return Posed(problem, [zeros(2), zeros(3)], [zeros(2), zeros(3)], [exact], frozenset({"smooth", "scaled"}))


@posed
def exponential() -> Posed:
    """f = e^x y^2 / 2 - y: y* = e^-x; no curvature in x at the start."""
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (y[0] - 0.01).square().sum(),
        f=lambda x, y, batch: (0.5 * x[0].exp() * y[0].square() - y[0]).sum(),
    )
    return Posed(problem, [t(-1.0)], [t(0.0)], [[t(math.log(100))]], frozenset({"smooth", "scaled"}))


@posed
def exponential_mild() -> Posed:
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (y[0] - t(0.5, 2.0)).square().sum(),
        f=lambda x, y, batch: (0.5 * x[0].exp() * y[0].square() - y[0]).sum(),
    )
    return Posed(problem, [zeros(2)], [zeros(2)], [[t(math.log(2), -math.log(2))]], frozenset({"smooth"}))


def log_sum_exp() -> Posed:
    """f = logsumexp(y - x) + |y|^2 / 2: the gradient's fixed point y* = -softmax(y* - x)."""
    target = t(-0.1, -0.3, -0.6)

    def lower(u: Tensor, w: Tensor) -> Tensor:
        return torch.logsumexp(w - u, 0) + 0.5 * w.square().sum()

    # y* = target is reached where target = -softmax(target - x), for every shift of x; the prior chooses the mean 0
    exact = target - (-target).log()
    exact = exact - exact.mean()
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (y[0] - target).square().sum() + 0.5 * x[0].mean().square(),
        f=lambda x, y, batch: lower(x[0], y[0]),
    )
    return Posed(problem, [zeros(3)], [zeros(3)], [[exact]], frozenset({"smooth"}), [target])


@posed
def hyperbolic_cosine() -> Posed:
    """f = sum cosh(y - x^3 / 3 - x), whose minimiser bends; F wants y = 1 and small x."""

    def reach(u: Tensor) -> Tensor:
        return u + u**3 / 3

    exact = scalar_minimum(lambda u: 0.5 * (reach(u) - 1) ** 2 + 0.05 * u**2, -2.0, 2.0)
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (y[0] - 1).square().sum() + 0.05 * x[0].square().sum(),
        f=lambda x, y, batch: torch.cosh(y[0] - reach(x[0])).sum(),
    )
    return Posed(problem, [zeros(2)], [zeros(2)], [[t(exact, exact)]], frozenset({"smooth"}))


@posed
def quartic_lower() -> Posed:
    """f = y^4 / 4 + y^2 / 20 - x y: steep far out, flat near zero."""

    def answer(u: Tensor) -> Tensor:
        w = torch.sign(u) * u.abs() ** (1 / 3)
        for _ in range(50):
            w = w - (w**3 + 0.1 * w - u) / (3 * w**2 + 0.1)
        return w

    exact = scalar_minimum(lambda u: 0.5 * (answer(u) - 1.5) ** 2 + 0.01 * u**2, 0.01, 6.0)
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (y[0] - 1.5).square().sum() + 0.01 * x[0].square().sum(),
        f=lambda x, y, batch: (0.25 * y[0] ** 4 + 0.05 * y[0].square() - x[0] * y[0]).sum(),
    )
    return Posed(problem, [t(0.5)], [t(0.0)], [[t(exact)]], frozenset({"smooth", "scaled"}))


@posed
def rosenbrock_above() -> Posed:
    problem = Bilevel(
        F=lambda x, y, batch: 10 * (y[0][1] - y[0][0] ** 2) ** 2 + (1 - y[0][0]) ** 2,
        f=lambda x, y, batch: 0.5 * (y[0] - x[0]).square().sum() + 0.1 * (y[0][0] - x[0][0]) ** 4,
    )
    return Posed(problem, [t(-1.0, 1.0)], [zeros(2)], [[t(1.0, 1.0)]], frozenset({"smooth", "scaled"}))


@posed
def rosenbrock_below() -> Posed:
    """f = (y1 - x)^2 + 5 (y2 - y1^2)^2: y* = (x, x^2), a curved valley below."""
    exact = scalar_minimum(lambda u: (u - 1) ** 2 + (u**2 - 2) ** 2, -2.0, 2.0)
    problem = Bilevel(
        F=lambda x, y, batch: (y[0][0] - 1) ** 2 + (y[0][1] - 2) ** 2,
        f=lambda x, y, batch: (y[0][0] - x[0][0]) ** 2 + 5 * (y[0][1] - y[0][0] ** 2) ** 2,
    )
    return Posed(problem, [t(0.0)], [zeros(2)], [[t(exact)]], frozenset({"smooth", "scaled"}))


@posed
def strong_coupling() -> Posed:
    """f_xy much larger than f_yy: small moves of x throw y far."""
    cross = 20 * torch.eye(4, dtype=F64) + torch.ones(4, 4, dtype=F64)
    target = t(1.0, -1.0, 2.0, 0.0)
    exact = torch.linalg.solve(cross.T @ cross + 0.01 * torch.eye(4, dtype=F64), cross.T @ target)
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (y[0] - target).square().sum() + 0.005 * x[0].square().sum(),
        f=lambda x, y, batch: 0.5 * (y[0] - cross @ x[0]).square().sum(),
    )
    return Posed(problem, [zeros(4)], [zeros(4)], [[exact]], frozenset({"smooth", "scaled"}))


@posed
def upper_without_y() -> Posed:
    """F does not look at y at all: the answer is F's own minimiser."""
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (x[0] - 3).square().sum() + 0 * y[0].sum(),
        f=lambda x, y, batch: 0.5 * (y[0] - x[0]).square().sum(),
    )
    return Posed(problem, [zeros(3)], [zeros(3)], [[3 * torch.ones(3, dtype=F64)]], frozenset({"smooth"}))


@posed
def float32_quadratic() -> Posed:
    A, z = spectrum(8, 10, 9).float(), torch.ones(8)
    wide = quadratic_of(A.double(), torch.eye(8, dtype=F64), z.double(), set())
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (x[0] - z).square().sum() + 0.5 * y[0].square().sum(),
        f=lambda x, y, batch: 0.5 * y[0] @ A @ y[0] - x[0] @ y[0],
    )
    return Posed(problem, [torch.zeros(8)], [torch.zeros(8)], wide.x_exact, frozenset({"float32"}))


@posed
def large_diagonal() -> Posed:
    """20,000 variables on each level, curvatures from 1 to 10."""
    n = 20_000
    bend = torch.linspace(1, 10, n, dtype=F64)
    exact = 1 / (1 + 1 / bend.square())
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (x[0] - 1).square().sum() + 0.5 * y[0].square().sum(),
        f=lambda x, y, batch: (0.5 * bend * y[0].square() - x[0] * y[0]).sum(),
    )
    return Posed(problem, [zeros(n)], [zeros(n)], [[exact]], frozenset({"smooth", "large"}), baseline=False)


def minimax_of(A: Tensor, b: Tensor, bend: float) -> Posed:
    """min over x of max over y of  bend |x|^2 / 2 + x'Ay - |y|^2 / 2 + b'y: y* = A'x + b, linear in x."""
    n, m = A.shape
    exact = torch.linalg.solve(bend * torch.eye(n, dtype=F64) + A @ A.T, -A @ b)

    def saddle(x: list[Tensor], y: list[Tensor]) -> Tensor:
        return 0.5 * bend * x[0].square().sum() + x[0] @ A @ y[0] - 0.5 * y[0].square().sum() + b @ y[0]

    problem = Bilevel(F=lambda x, y, batch: saddle(x, y), f=lambda x, y, batch: -saddle(x, y))
    start = [torch.ones(n, dtype=F64)]
    return Posed(problem, start, [zeros(m)], [[exact]], frozenset({"smooth", "minimax"}), [A.T @ exact + b])


@posed
def minimax_scalar() -> Posed:
    return minimax_of(torch.ones(1, 1, dtype=F64), t(1.0), 0.5)


@posed
def minimax_five() -> Posed:
    return minimax_of(torch.randn(5, 5, generator=draw(11), dtype=F64), t(1.0, -1.0, 0.5, 2.0, 0.0), 0.2)


@posed
def minimax_tall() -> Posed:
    return minimax_of(torch.randn(3, 12, generator=draw(12), dtype=F64), torch.ones(12, dtype=F64), 1.0)
