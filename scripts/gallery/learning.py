"""Small learning problems: weight decay, weights of samples, a network of tanh units."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gallery.posed import F64, Posed, draw, newton, newton_large, posed, scalar_minimum, solved, t, zeros
from nas_moreau.bilevel import Bilevel


def regression(seed: int, rows: int, columns: int, noise: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns training inputs and targets, validation inputs and targets; a third of the inputs matter."""
    generator = draw(seed)
    inputs = torch.randn(2 * rows, columns, generator=generator, dtype=F64)
    truth = torch.where(torch.arange(columns) < max(1, columns // 3), 1.0, 0.0).to(F64)
    targets = inputs @ truth + noise * torch.randn(2 * rows, generator=generator, dtype=F64)
    return inputs[:rows], targets[:rows], inputs[rows:], targets[rows:]


@posed
def ridge_one_weight() -> Posed:
    """Validation loss of a ridge regression whose weight is e^x; x* from the one-dimensional problem."""
    a, b, c, d = regression(4, 30, 12, 1.0)

    def minimiser(u: Tensor) -> Tensor:
        return torch.linalg.solve(a.T @ a / len(b) + u.exp() * torch.eye(a.shape[1], dtype=F64), a.T @ b / len(b))

    exact = scalar_minimum(lambda u: (c @ minimiser(u) - d).square().mean() + 0.01 * (u + 1) ** 2, -8.0, 4.0)
    problem = Bilevel(
        F=lambda x, y, batch: (c @ y[0] - d).square().mean() + 0.01 * (x[0] + 1).square().sum(),
        f=lambda x, y, batch: 0.5 * (a @ y[0] - b).square().mean() + 0.5 * x[0].exp().sum() * y[0].square().sum(),
    )
    return Posed(problem, [t(-4.0)], [zeros(12)], [[t(exact)]], frozenset({"smooth"}))


@posed
def ridge_two_groups() -> Posed:
    """One weight for the inputs that matter and one for the others, with a prior on both; x* by Newton's method."""
    a, b, c, d = regression(5, 40, 9, 0.7)
    groups = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1])

    def hyper(u: Tensor) -> Tensor:
        w = torch.linalg.solve(a.T @ a / len(b) + torch.diag(u.exp()[groups]), a.T @ b / len(b))
        return (c @ w - d).square().mean() + 0.01 * u.square().sum()

    exact = newton(hyper, t(-1.0, 0.0))
    problem = Bilevel(
        F=lambda x, y, batch: (c @ y[0] - d).square().mean() + 0.01 * x[0].square().sum(),
        f=lambda x, y, batch: 0.5 * (a @ y[0] - b).square().mean() + 0.5 * (x[0].exp()[groups] * y[0].square()).sum(),
    )
    return Posed(problem, [zeros(2)], [zeros(9)], [[exact]], frozenset({"smooth"}))


def logistic_lower(seed: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns a logistic regression's training and validation data, a fifth of the training labels turned."""
    generator = draw(seed)
    inputs = torch.randn(2 * rows, columns, generator=generator, dtype=F64)
    signs = torch.sign(
        inputs @ torch.ones(columns, dtype=F64) + 0.3 * torch.randn(2 * rows, generator=generator, dtype=F64)
    )
    turned = torch.rand(rows, generator=generator) < 0.2
    train = torch.where(turned, -signs[:rows], signs[:rows])
    return inputs[:rows], train, inputs[rows:], signs[rows:]


@posed
def logistic_weight_decay() -> Posed:
    a, b, c, d = logistic_lower(6, 40, 5)
    soft = torch.nn.functional.softplus

    def lower(u: Tensor, w: Tensor) -> Tensor:
        return soft(-b * (a @ w)).mean() + 0.5 * u.exp().sum() * w.square().sum()

    def upper(u: Tensor, w: Tensor) -> Tensor:
        return soft(-d * (c @ w)).mean() + 0.002 * u.square().sum()

    minimiser = solved(lower, 5)
    exact = newton(lambda u: upper(u, minimiser(u)), t(-2.0))
    problem = Bilevel(F=lambda x, y, batch: upper(x[0], y[0]), f=lambda x, y, batch: lower(x[0], y[0]))
    return Posed(problem, [t(0.0)], [zeros(5)], [[exact]], frozenset({"smooth"}))


@posed
def weighted_logistic() -> Posed:
    """A weight sigmoid(x_i) for each of 20 samples, with a prior on x: hyper-cleaning in small."""
    a, b, c, d = logistic_lower(7, 20, 3)
    soft = torch.nn.functional.softplus

    def lower(u: Tensor, w: Tensor) -> Tensor:
        return (torch.sigmoid(u) * soft(-b * (a @ w))).mean() + 0.05 * w.square().sum()

    def upper(u: Tensor, w: Tensor) -> Tensor:
        return soft(-d * (c @ w)).mean() + 1e-3 * u.square().sum()

    minimiser = solved(lower, 3)
    exact = newton(lambda u: upper(u, minimiser(u)), zeros(20))
    problem = Bilevel(F=lambda x, y, batch: upper(x[0], y[0]), f=lambda x, y, batch: lower(x[0], y[0]))
    return Posed(problem, [zeros(20)], [zeros(3)], [[exact]], frozenset({"smooth"}))


@posed
def tanh_network() -> Posed:
    """A network of three tanh units with two weight decays; x* by Newton's method on the lower minimiser's branch."""
    generator = draw(8)
    inputs = torch.randn(24, 2, generator=generator, dtype=F64)
    targets = torch.sin(inputs[:, 0]) + 0.2 * torch.randn(24, generator=generator, dtype=F64)
    more = torch.randn(24, 2, generator=generator, dtype=F64)
    wanted = torch.sin(more[:, 0])
    begin = 0.5 * torch.randn(9, generator=generator, dtype=F64)

    def net(w: Tensor, at: Tensor) -> Tensor:
        return torch.tanh(at @ w[:6].view(2, 3)) @ w[6:]

    def lower(u: Tensor, w: Tensor) -> Tensor:
        decay = u[0].exp() * w[:6].square().sum() + u[1].exp() * w[6:].square().sum()
        return 0.5 * (net(w, inputs) - targets).square().mean() + 0.5 * decay

    def upper(u: Tensor, w: Tensor) -> Tensor:
        return 0.5 * (net(w, more) - wanted).square().mean() + 0.002 * (u + 3).square().sum()

    answers = []
    for sign in (begin, -begin):  # a unit and its weights may change their signs together: the loss is the same
        w = sign
        u = t(-2.0, -2.0)
        for _ in range(60):
            w = newton(lambda v, u=u: lower(u, v), w)

            def hyper(v: Tensor, w: Tensor = w) -> Tensor:
                for _ in range(2):
                    w = w if w.requires_grad else w.detach().requires_grad_()
                    (slope,) = torch.autograd.grad(lower(v, w), w, create_graph=True)
                    bend = torch.autograd.functional.hessian(lambda q: lower(v, q), w, create_graph=True)
                    w = w - torch.linalg.solve(bend, slope)
                return upper(v, w)

            before = u
            u = newton(hyper, u, steps=1)
            if float((u - before).norm()) < 1e-13:
                break
        answers.append([u])
    problem = Bilevel(F=lambda x, y, batch: upper(x[0], y[0]), f=lambda x, y, batch: lower(x[0], y[0]))
    return Posed(problem, [t(-2.0, -2.0)], [begin], answers, frozenset({"smooth", "basins"}))


@posed
@posed
def large_logistic() -> Posed:
    """A weight for each of 2,000 samples: f = sum w_i (y - a_i)^2 / 2 + |y|^2 / 2."""
    n, generator = 2000, draw(10)
    a = torch.randn(n, generator=generator, dtype=F64)

    def mean_of(u: Tensor) -> Tensor:
        w = torch.sigmoid(u)
        return (w @ a) / (w.sum() + 1)

    exact = newton_large(lambda u: 0.5 * (mean_of(u) - 0.5) ** 2 + 0.5e-3 * u.square().sum(), zeros(n))
    problem = Bilevel(
        F=lambda x, y, batch: 0.5 * (y[0] - 0.5).square().sum() + 0.5e-3 * x[0].square().sum(),
        f=lambda x, y, batch: 0.5 * (torch.sigmoid(x[0]) @ (y[0] - a).square() + y[0].square().sum()) / n,
    )
    return Posed(problem, [zeros(n)], [zeros(1)], [[exact]], frozenset({"smooth", "large"}), baseline=False)


@posed
def stochastic_ridge() -> Posed:
    """A weight for each of 10 inputs of a ridge regression, seen in batches of 50 of 1,000 samples."""
    generator = draw(15)
    n, m = 1000, 10
    a = torch.randn(2 * n, m, generator=generator, dtype=F64)
    truth = torch.where(torch.arange(m) < 4, 1.0, 0.0).to(F64)
    b = a @ truth + torch.randn(2 * n, generator=generator, dtype=F64)

    def lower(u: Tensor, w: Tensor, rows: Tensor) -> Tensor:
        return 0.5 * (a[rows] @ w - b[rows]).square().mean() + 0.5 * (u.exp() * w.square()).sum()

    def upper(u: Tensor, w: Tensor, rows: Tensor) -> Tensor:
        return 0.5 * (a[rows] @ w - b[rows]).square().mean() + 0.05 * (u + 1).square().sum()

    train, valid = torch.arange(n), torch.arange(n, 2 * n)

    def hyper(u: Tensor) -> Tensor:
        w = torch.linalg.solve(a[train].T @ a[train] / n + torch.diag(u.exp()), a[train].T @ b[train] / n)
        return upper(u, w, valid)

    exact = newton(hyper, zeros(m) - 1)

    def batches(k: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(0, n, (2, 50), generator=draw(1000 + k))
        return rows[0] + n, rows[1]

    def rows_of(batch: Any, whole: Tensor) -> Tensor:
        return whole if batch is None else batch

    problem = Bilevel(
        F=lambda x, y, batch: upper(x[0], y[0], rows_of(batch, valid)),
        f=lambda x, y, batch: lower(x[0], y[0], rows_of(batch, train)),
    )
    return Posed(problem, [zeros(m)], [zeros(m)], [[exact]], frozenset({"stochastic"}), batches=batches, baseline=False)


@posed
def simulated_quadratics() -> Posed:
    """The problem `simulated` of benchmark_bilevel: 128 + 128 random quadratics, y 40, x 10; from x = -2, y = 0."""
    inner, outer = _quadratics(16, 128), _quadratics(17, 128)
    # y* = -H^-1 (b + C'x); Phi is quadratic in x
    H, C, b = inner.yy, inner.cross, inner.y
    slope, begin = -torch.linalg.solve(H, C.T), -torch.linalg.solve(H, b)
    bend = outer.xx + slope.T @ outer.yy @ slope + outer.cross @ slope + (outer.cross @ slope).T
    exact = -torch.linalg.solve(bend, outer.x + outer.cross @ begin + slope.T @ (outer.yy @ begin + outer.y))
    problem = Bilevel(F=lambda x, y, batch: outer.value(x[0], y[0]), f=lambda x, y, batch: inner.value(x[0], y[0]))
    start = torch.full((10,), -2.0, dtype=F64)
    return Posed(problem, [start], [zeros(40)], [[exact]], frozenset({"smooth"}))


class Quadratic(NamedTuple):
    """.5 y'yy y + .5 x'xx x + x'cross y + linear terms, the mean over samples."""

    yy: Tensor
    xx: Tensor
    cross: Tensor
    y: Tensor
    x: Tensor

    def value(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the value."""
        quadratic = 0.5 * y @ self.yy @ y + 0.5 * x @ self.xx @ x + x @ self.cross @ y
        return quadratic + self.y @ y + self.x @ x


def _quadratics(seed: int, samples: int, n: int = 40, m: int = 10, low: float = 0.1) -> Quadratic:
    """Returns the mean of random quadratics as benchmark_bilevel draws them (spectrum low to 1, cross terms to .1)."""
    generator = draw(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64)

    def bend(size: int, zeros_first: int) -> Tensor:
        basis, _ = torch.linalg.qr(normal(size, size))
        roots = torch.logspace(math.log10(low) / 2, 0, size - zeros_first, dtype=F64)
        roots = torch.cat([torch.zeros(zeros_first, dtype=F64), roots])
        rows = normal(samples, size) @ (basis @ torch.diag(roots) @ basis.T)
        return rows.T @ rows / samples

    left, _ = torch.linalg.qr(normal(m, m))
    right, _ = torch.linalg.qr(normal(n, n))
    sizes = torch.zeros(m, n, dtype=F64)
    sizes[:, :m] = torch.diag(torch.logspace(math.log10(low), -1, m, dtype=F64))
    rows = normal(samples, n)
    cross = left @ sizes @ (rows.T @ rows / samples) @ right.T
    return Quadratic(bend(n, 0), bend(m, 1), cross, normal(samples, n).mean(0), normal(samples, m).mean(0))
