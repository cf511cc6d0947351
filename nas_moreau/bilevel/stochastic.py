"""Minibatches: single-loop implicit steps of y, v and x together, with falling steps, momentum and an average of x.

    y+ = y - beta_k f_y(x, y)
    v+ = v - beta_k ( f_yy(x, y) v - F_y(x, y) )                 v tends to f_yy^-1 F_y
    d  = F_x(x, y) - f_xy(x, y) v                                an estimate of the hypergradient
    m+ = share m + (1 - share) d                                 (MA-SOBA)
    x+ = x + a step along -m, by its update rule

SOBA (Dagreou et al., NeurIPS 2022), with the moving average of MA-SOBA (Chen, Xiao and Balasubramanian, JMLR 2024).
With `variance_reduction` each of the three directions is a recursive estimate as in SUSTAIN (Khanduri et al., NeurIPS
2021): e+ = d(z; batch) + (1 - a_k) (e - d(z_before; batch)), at twice the evaluations.

The step returns weighted averages of x and y, in which late iterates count more (Shamir and Zhang, ICML 2013); the
iterates themselves are in the state.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from nas_moreau.bilevel.method import Batches, Info, Method, make_method
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.tensors import Tensors, add, dot, norm, random_like, scalar_of, scale, subtract
from nas_moreau.bilevel.updates import Update, distance_over_gradients

SHARE = 0.9
"""Share of the previous direction of x."""
SAFETY = 0.5
"""What a step of y and v is of the reciprocal of the largest curvature met."""
CLOCK = 200
"""Steps after which the step sizes have fallen by sqrt(2): beta_k = beta / sqrt(1 + k / CLOCK)."""
AVERAGE = 3
"""The iterate of step k has the weight k^AVERAGE in the averages, to first order."""
FIRST_PRODUCTS, CHECK_EVERY, FALL = 8, 10, 0.95
"""Products with f_yy at the start to find its largest eigenvalue, steps between later ones, how fast it may fall."""


class Directions(NamedTuple):
    """Directions of y, v and x at a point on a batch."""

    y: Tensors
    v: Tensors
    x: Tensors


class StochasticState(NamedTuple):
    """What a step passes to the next.

    Attributes:
        k: Number of steps done.
        x, y, v: The iterates.
        mean_d: The moving average of the directions of x.
        x_rule: State of x's update rule.
        curvature: Largest curvature of f in y that is in use.
        along: Its direction, of length 1.
        before: The point of the last step, x, y and v in one list, and the estimates there; empty lists without
            variance reduction.
        estimates: Estimates of the directions y, v and x in one list; empty without variance reduction.
    """

    k: int
    x: Tensors
    y: Tensors
    v: Tensors
    mean_d: Tensors
    x_rule: Any
    curvature: float
    along: Tensors
    before: Tensors
    estimates: Tensors


def soba(
    alpha: float = 1.0,
    beta: float | str = "auto",
    share: float = SHARE,
    update_x: Update | None = None,
    variance_reduction: bool = False,
) -> Method:
    """Returns the stochastic implicit method; the lower level must be smooth and unconstrained.

    Args:
        alpha: Step size of x under `update_x`; a factor of the length for a rule that finds it.
        beta: First step size of y and v, or "auto".
        share: Share of the previous direction of x.
        update_x: Default `distance_over_gradients()`, which finds the length of its steps.
        variance_reduction: Recursive estimates of the directions.

    Raises:
        ValueError: In `init`, where the lower level has a g, a set Y or a constraint.
    """
    rule = distance_over_gradients(momentum=0.0) if update_x is None else update_x

    def init(problem: Bilevel, x: Tensors, y: Tensors, batches: Batches) -> StochasticState:
        if problem.g is not None or problem.project_y is not None or problem.constraint is not None:
            raise ValueError("The implicit steps need a smooth, unconstrained lower level. Use moreau(...).")
        along = random_like(y, torch.Generator(device="cpu").manual_seed(0))
        curvature = 0.0
        for _ in range(FIRST_PRODUCTS if beta == "auto" else 0):
            curvature, along = _curvature(problem, x, y, along, batches)
        if beta == "auto" and not 0 < curvature < math.inf:
            raise ValueError("No curvature of f in y was found at the start. Give beta.")
        zeros_y, zeros_x = [torch.zeros_like(t) for t in y], [torch.zeros_like(t) for t in x]
        return StochasticState(0, x, y, zeros_y, zeros_x, rule.init(x), curvature, along, [], [])

    def step(
        problem: Bilevel, x: Tensors, y: Tensors, state: StochasticState, batches: Batches
    ) -> tuple[Tensors, Tensors, StochasticState, Info]:
        k, curvature, along = state.k, state.curvature, state.along
        if beta == "auto" and k and k % CHECK_EVERY == 0:
            found, along = _curvature(problem, state.x, state.y, along, batches)
            curvature = max(found, FALL * curvature) if math.isfinite(found) else curvature
        first = SAFETY / curvature if isinstance(beta, str) else beta
        b = first / math.sqrt(1 + k / CLOCK)
        d, values = _directions(problem, state.x, state.y, state.v, batches)
        before, estimates = state.before, state.estimates
        if variance_reduction:
            now = [*d.y, *d.v, *d.x]
            if estimates:
                past, _ = _directions(problem, *_split(before, len(y)), batches)
                keep = 1 - 1 / (1 + k / CLOCK) ** (2 / 3)
                now = add(now, subtract(estimates, [*past.y, *past.v, *past.x]), keep)
            before, estimates = [*state.y, *state.v, *state.x], now
            d = Directions(now[: len(y)], now[len(y) : 2 * len(y)], now[2 * len(y) :])
        mean_d = add(scale(state.mean_d, share), d.x, 1 - share)
        unbiased = scale(mean_d, 1 / (1 - share ** (k + 1)))
        new_x, x_rule = rule.apply(unbiased, alpha, state.x, state.x_rule)
        new_x = problem.onto_x(new_x)
        new_y, new_v = add(state.y, d.y, -b), add(state.v, d.v, -b)
        weight = (AVERAGE + 1) / (k + AVERAGE + 1)
        mean_x = add(x, subtract(new_x, x), weight) if k else new_x
        mean_y = add(y, subtract(new_y, y), weight) if k else new_y
        new = StochasticState(k + 1, new_x, new_y, new_v, mean_d, x_rule, curvature, along, before, estimates)
        norms = {"d_x": norm(unbiased), "d_y": norm(d.y)}
        info = Info(alpha=alpha, beta=b, norms=norms, F=values[0], f=values[1])
        return problem.onto_x(mean_x), mean_y, new, info

    return make_method(init, step)


def _split(point: Tensors, n: int) -> tuple[Tensors, Tensors, Tensors]:
    """Returns x, y and v of a list that holds y, v and x."""
    return point[2 * n :], point[:n], point[n : 2 * n]


def _directions(
    problem: Bilevel, x: Tensors, y: Tensors, v: Tensors, batches: Batches
) -> tuple[Directions, tuple[torch.Tensor, torch.Tensor]]:
    """Returns the three directions and the values of F and f; one evaluation of each and one product for both parts."""
    with torch.enable_grad():
        at_x, at_y = [t.detach().requires_grad_() for t in x], [t.detach().requires_grad_() for t in y]
        f = scalar_of(problem.f(at_x, at_y, batches.lower))
        f_y = torch.autograd.grad(f, at_y, create_graph=True, allow_unused=True, materialize_grads=True)
        products = _gradient(dot(list(f_y), v), [*at_y, *at_x])
        F = scalar_of(problem.F(at_x, at_y, batches.upper))
        upper = _gradient(F, [*at_y, *at_x])
    n = len(y)
    d_v = subtract(products[:n], upper[:n])
    d_x = subtract(upper[n:], products[n:])
    return Directions([t.detach() for t in f_y], d_v, d_x), (F.detach(), f.detach())


def _curvature(problem: Bilevel, x: Tensors, y: Tensors, along: Tensors, batches: Batches) -> tuple[float, Tensors]:
    """Returns |f_yy u| for the unit vector u along a direction, and its own direction (one step of power iteration)."""
    unit = scale(along, 1 / max(float(norm(along)), 1e-300))
    with torch.enable_grad():
        at_y = [t.detach().requires_grad_() for t in y]
        f = scalar_of(problem.f([t.detach() for t in x], at_y, batches.lower))
        f_y = torch.autograd.grad(f, at_y, create_graph=True, allow_unused=True, materialize_grads=True)
        image = _gradient(dot(list(f_y), unit), at_y)
    size = float(norm(image))
    return size, (scale(image, 1 / size) if 0 < size < math.inf else unit)


def _gradient(value: torch.Tensor, leaves: Tensors) -> Tensors:
    """Returns gradients, zero where the value does not depend on a leaf."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True))
