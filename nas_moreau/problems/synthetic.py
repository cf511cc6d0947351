"""Small bilevel problems with exact solutions: those on which the Moreau-envelope method was published.

Each function returns a `Case`: the problem, a start, the exact solution, and the settings of the paper (Liu et al.,
ICML 2024; equation numbers are the paper's).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nas_moreau.bilevel import Bilevel
from nas_moreau.bilevel.prox import L1, project_box
from nas_moreau.bilevel.tensors import Tensors


@dataclass(frozen=True)
class Case:
    """A bilevel problem to solve.

    Attributes:
        name: As on the command line.
        problem: F, f, g and the projections.
        x, y: The start.
        error: x -> |x - x*| / max(1, |x*|) as a float, the distance to the nearest solution; None if none is known.
        x_exact, y_exact: A solution, or None.
        y_of: x -> the exact minimiser of the lower level, or None if it is unknown or not unique.
        paper: The paper's settings for `moreau` (alpha, beta, eta, gamma, c, p).
        data: The data of the problem, for searches that use no gradients.
    """

    name: str
    problem: Bilevel
    x: Tensors
    y: Tensors
    error: Callable[[Tensors], float] | None = None
    x_exact: Tensors | None = None
    y_exact: Tensors | None = None
    y_of: Callable[[Tensors], Tensors] | None = None
    paper: dict[str, float] = field(default_factory=dict)
    data: Any = None


def relative_error(found: Tensors, exact: Tensors) -> float:
    """Returns |found - exact| / max(1, |exact|), Euclidean over all tensors."""
    apart = math.sqrt(sum(float((s - t).square().sum()) for s, t in zip(found, exact)))
    return apart / max(1.0, math.sqrt(sum(float(t.square().sum()) for t in exact)))


def _full(n: int, value: float, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    return torch.full((n,), value, dtype=dtype, device=device)


def sine(
    n: int = 1,
    a: float = 2.0,
    c: float | Tensor = 2.0,
    start: tuple[float, float] = (-6.0, 0.0),
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Case:
    """Returns (19): F = |x - a|^2 + |y - a e - c|^2, each y_i in argmin sin(x + y_i - c_i); x scalar, y (n,).

    x* = ((1-n) a + n C) / (1+n), y_i* = C + c_i - x*, with C the member of {-pi/2 + 2 k pi} nearest to 2a. The lower
    level is not convex, and its stationary points of the wrong sort (maxima) are feasible for the reformulation with
    small gamma.

    Args:
        n: Length of y.
        a: Of F.
        c: A number for all c_i, or a tensor (n,).
        start: (x, each y_i); the paper's is (-6, 0).
        dtype: Of all tensors.
        device: Of all tensors.
    """
    shift = c.to(device=device, dtype=dtype) if isinstance(c, Tensor) else _full(n, c, dtype, device)

    def F(x: Tensors, y: Tensors, batch: Any) -> Tensor:
        return (x[0] - a).square().sum() + (y[0] - (a + shift)).square().sum()

    def f(x: Tensors, y: Tensors, batch: Any) -> Tensor:
        return torch.sin(x[0] + y[0] - shift).sum()

    valley = -math.pi / 2 + 2 * math.pi * round((2 * a + math.pi / 2) / (2 * math.pi))
    best = ((1 - n) * a + n * valley) / (1 + n)
    x_exact = [_full(1, best, dtype, device)]
    return Case(
        "sine",
        Bilevel(F, f),
        [_full(1, start[0], dtype, device)],
        [_full(n, start[1], dtype, device)],
        lambda x: relative_error(x, x_exact),
        x_exact,
        [valley + shift - best],
        paper={"alpha": 5e-4, "beta": 5e-4, "eta": 1e-3, "gamma": 200.0, "c": 0.02, "p": 0.49},
    )


def quadratic(
    n: int = 100, A: Tensor | None = None, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Case:
    """Returns (77): F = |x - z|^2/2 + y'Ay/2 with z = e, lower level y'Ay/2 - x'y; x, y (n,).

    y*(x) = A^-1 x, so x* = (I + A^-1)^-1 e and y* = A^-1 x*; with the paper's A = I both are e/2.

    Args:
        n: Length of x and y.
        A: Symmetric positive definite (n, n); None for the identity.
        dtype: Of all tensors.
        device: Of all tensors.
    """
    e = _full(n, 1.0, dtype, device)

    def times_A(y: Tensor) -> Tensor:
        return y if A is None else A @ y

    def F(x: Tensors, y: Tensors, batch: Any) -> Tensor:
        return 0.5 * (x[0] - e).square().sum() + 0.5 * torch.dot(y[0], times_A(y[0]))

    def f(x: Tensors, y: Tensors, batch: Any) -> Tensor:
        return 0.5 * torch.dot(y[0], times_A(y[0])) - torch.dot(x[0], y[0])

    def lower(x: Tensors) -> Tensors:
        return [x[0].clone() if A is None else torch.linalg.solve(A, x[0])]

    matrix = torch.eye(n, dtype=dtype, device=device) if A is None else A
    x_exact = [torch.linalg.solve(matrix + torch.eye(n, dtype=dtype, device=device), matrix @ e)]
    zeros = [torch.zeros_like(e)]
    return Case(
        "quadratic",
        Bilevel(F, f),
        zeros,
        zeros,
        lambda x: relative_error(x, x_exact),
        x_exact,
        lower(x_exact),
        lower,
        paper={"alpha": 1.5, "beta": 0.8, "eta": 0.8, "gamma": 10.0, "c": 33.3, "p": 0.49},
    )


def merely_convex(n: int = 100, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Case:
    """Returns (18): F = |x - y2|^2/2 + |y1 - e|^2/2, lower level |y1|^2/2 - x'y1 over (y1, y2).

    The lower level leaves y2 free, so it has many solutions, and F picks one: x = y1 = y2 = e.

    Args:
        n: Length of x, y1 and y2.
        dtype: Of all tensors.
        device: Of all tensors.
    """
    e = _full(n, 1.0, dtype, device)

    def F(x: Tensors, y: Tensors, batch: Any) -> Tensor:
        return 0.5 * (x[0] - y[1]).square().sum() + 0.5 * (y[0] - e).square().sum()

    def f(x: Tensors, y: Tensors, batch: Any) -> Tensor:
        return 0.5 * y[0].square().sum() - torch.dot(x[0], y[0])

    zeros = torch.zeros_like(e)
    return Case(
        "merely-convex",
        Bilevel(F, f),
        [zeros],
        [zeros, zeros],
        lambda x: relative_error(x, [e]),
        [e],
        [e, e],
        paper={"alpha": 0.012, "beta": 0.1, "eta": 0.009, "gamma": 5.0, "c": 0.167, "p": 0.49},
    )


def lasso(n: int = 100, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Case:
    """Returns (20): F = sum y, lower level |y - v|^2/2 + sum x_i |y_i|, 0 <= x <= 1; x, y (n,).

    v = (1/n, .., -1/n, ..). y_i(x) is v_i shrunk by x_i, so x solves it if and only if x_i >= 1/n in the first half and
    x_i = 0 in the second; the error is the distance to that set. Every x with all x_i > 1/n has y = 0 nearby and is
    stationary, so a start there goes nowhere by any gradient; this one starts at x = 0.

    Args:
        n: Even.
        dtype: Of all tensors.
        device: Of all tensors.

    Raises:
        ValueError: n is odd.
    """
    if n % 2 or n < 2:
        raise ValueError(f"The lasso problem has two halves, so n cannot be {n}. Use an even n.")
    v = torch.cat([_full(n // 2, 1 / n, dtype, device), _full(n // 2, -1 / n, dtype, device)])
    half = n // 2

    def F(x: Tensors, y: Tensors, batch: Any) -> Tensor:
        return y[0].sum()

    def f(x: Tensors, y: Tensors, batch: Any) -> Tensor:
        return 0.5 * (y[0] - v).square().sum()

    def error(x: Tensors) -> float:
        first, second = x[0][:half], x[0][half:]
        nearest = [torch.cat([first.clamp(min=1 / n, max=1.0), torch.zeros_like(second)])]
        return relative_error(x, nearest)

    g = L1(lambda x: x)
    zeros = torch.zeros_like(v)
    return Case(
        "lasso",
        Bilevel(F, f, g=g, project_x=project_box(0.0, 1.0)),
        [zeros],
        [zeros],
        error,
        [torch.cat([_full(half, 1 / n, dtype, device), _full(half, 0.0, dtype, device)])],
        [torch.cat([_full(half, 0.0, dtype, device), v[half:]])],
        lambda x: g.prox(x, [v], 1.0),
        paper={"alpha": 0.1, "beta": 1e-5, "eta": 0.1, "gamma": 10.0, "c": 2.0, "p": 0.49},
    )
