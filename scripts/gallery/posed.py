"""What a problem of the gallery is, and the tools with which answers are computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nas_moreau.bilevel import Bilevel

F64 = torch.float64


@dataclass(frozen=True)
class Posed:
    """A problem with its answer.

    Attributes:
        problem: F, f, g, constraints.
        x, y: The start.
        x_exact: The answer in x; several where the solution set has several isolated members.
        kinds: What makes it hard: smooth, scaled, kinked, basins, flat (sets of minimisers), minimax, constrained,
            coupled, nonsmooth, stochastic, large, float32.
        y_exact: The answer in y, None where it is not compared.
        batches: k -> (upper batch, lower batch), for stochastic problems.
        baseline: Whether the dense implicit gradient with L-BFGS applies: smooth, unconstrained, definite.
    """

    problem: Bilevel
    x: list[Tensor]
    y: list[Tensor]
    x_exact: list[list[Tensor]]
    kinds: frozenset[str]
    y_exact: list[Tensor] | None = None
    batches: Callable[[int], tuple[Any, Any]] | None = None
    baseline: bool = True
    note: str = field(default="")

    def error(self, x: list[Tensor]) -> float:
        """Returns |x - x*| / max(1, |x*|) to the nearest answer; NaN counts as infinite."""
        errors = []
        for exact in self.x_exact:
            apart = math.sqrt(sum(float((s.double() - t.double()).square().sum()) for s, t in zip(x, exact)))
            size = math.sqrt(sum(float(t.double().square().sum()) for t in exact))
            errors.append(apart / max(1.0, size))
        best = min(errors)
        return best if math.isfinite(best) else math.inf


GALLERY: dict[str, Callable[[], Posed]] = {}


def posed(function: Callable[[], Posed]) -> Callable[[], Posed]:
    """Adds a problem to the gallery under the name of its function."""
    GALLERY[function.__name__.replace("_", "-")] = function
    return function


def t(*values: float) -> Tensor:
    """Returns a float64 vector."""
    return torch.tensor(values, dtype=F64)


def zeros(n: int) -> Tensor:
    """Returns a float64 vector of zeros."""
    return torch.zeros(n, dtype=F64)


def draw(seed: int) -> torch.Generator:
    """Returns a generator for a problem's data."""
    return torch.Generator(device="cpu").manual_seed(seed)


def spectrum(n: int, condition: float, seed: int) -> Tensor:
    """Returns a symmetric matrix with eigenvalues from 1/condition to 1, evenly spaced in their logarithm."""
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=draw(seed), dtype=F64))
    return q @ torch.diag(torch.logspace(-math.log10(condition), 0, n, dtype=F64)) @ q.T


def scalar_minimum(function: Callable[[Tensor], Tensor], low: float, high: float) -> float:
    """Returns the least point of a smooth function on an interval: a grid, then Newton's method."""
    grid = torch.linspace(low, high, 2_001, dtype=F64)
    u = grid[torch.stack([function(v) for v in grid]).argmin()].clone()
    for _ in range(60):
        u = u.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(u), u, create_graph=True)
        (bend,) = torch.autograd.grad(slope, u)
        move = (slope / bend).detach()
        u = (u - move).detach()
        if abs(float(move)) < 1e-15 * max(1.0, abs(float(u))):
            break
    return float(u)


def newton(function: Callable[[Tensor], Tensor], start: Tensor, steps: int = 200) -> Tensor:
    """Returns a stationary point near the start: damped Newton's method with a line search on the function."""
    u = start.clone()
    for _ in range(steps):
        slope = torch.autograd.functional.jacobian(function, u)
        bend = torch.autograd.functional.hessian(function, u)
        values, vectors = torch.linalg.eigh(bend)
        move = vectors @ ((vectors.T @ slope) / values.abs().clamp(min=1e-8))
        length = 1.0
        while length > 1e-10 and function(u - length * move) > function(u):
            length /= 2
        u = u - length * move
        if float((length * move).norm()) < 1e-14 * max(1.0, float(u.norm())):
            break
    return u


def solved(lower: Callable[[Tensor, Tensor], Tensor], n: int) -> Callable[[Tensor], Tensor]:
    """Returns x -> the minimiser of a strongly convex lower level by Newton's method, differentiable once more.

    One Newton step from the detached minimiser carries the first and, by a second step, the second derivative.
    """

    def minimiser(u: Tensor) -> Tensor:
        w = torch.zeros(n, dtype=F64)
        with torch.enable_grad():
            for _ in range(100):
                w = w.detach().requires_grad_()
                (slope,) = torch.autograd.grad(lower(u.detach(), w), w)
                bend = torch.autograd.functional.hessian(lambda v: lower(u.detach(), v), w.detach())
                move = torch.linalg.solve(bend, slope)
                w = w - move
                if float(move.norm()) < 1e-15:
                    break
        w = w.detach()
        for _ in range(2):
            w = w.requires_grad_() if not w.requires_grad else w
            (slope,) = torch.autograd.grad(lower(u, w), w, create_graph=True)
            bend = torch.autograd.functional.hessian(lambda v: lower(u, v), w, create_graph=True)
            w = w - torch.linalg.solve(bend, slope)
        return w

    return minimiser


def newton_large(function: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Returns the minimiser of a smooth function of many variables by L-BFGS with a strong Wolfe line search."""
    u = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [u], max_iter=2000, max_eval=10_000, tolerance_grad=1e-15, tolerance_change=1e-18, history_size=50,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = function(u)
        value.backward()
        return value

    for _ in range(5):
        optimizer.step(closure)
    return u.detach()
