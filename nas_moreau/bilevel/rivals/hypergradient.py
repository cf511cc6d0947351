"""Methods that follow the hypergradient of F(x, y*(x)), by unrolling or by the implicit function theorem.

    dF/dx = F_x - f_xy (f_yy)^-1 F_y     at y*(x)

All need a smooth lower level without constraints, and its Hessian by automatic differentiation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas_moreau.bilevel.method import Batches, Info, Method, State, StepSize, at, make_method
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.tensors import (
    Evaluated,
    Tensors,
    add,
    detach,
    dot,
    norm,
    scalar_of,
    scale,
    subtract,
    value_and_grads,
)
from nas_moreau.bilevel.updates import Update, gradient_descent


class Hypergradient(NamedTuple):
    """The direction of x, the y it belongs to, F there, and f before the inner steps."""

    d_x: Tensors
    y: Tensors
    upper: Evaluated
    f: Tensor | None


def rhg(
    alpha: StepSize,
    beta: StepSize,
    inner_steps: int = 10,
    truncate: int | None = None,
    update_x: Update | None = None,
) -> Method:
    """Returns reverse-mode differentiation through the lower level's gradient steps.

        y_{t+1} = y_t - beta grad_y f(x, y_t), t < T;  d_x = d F(x, y_T(x)) / dx;  y <- y_T

    Franceschi et al., ICML 2017 (reverse-HG); with `truncate` only the last steps are differentiated (Shaban et al.,
    AISTATS 2019, K-RHG). The steps start from the y of the previous step.

    Args:
        alpha: Step size of x.
        beta: Step size of the inner steps.
        inner_steps: T.
        truncate: Number of steps that are differentiated; None for all.
        update_x: Update rule; default x - alpha * d_x.
    """
    _positive(inner_steps=inner_steps, truncate=1 if truncate is None else truncate)

    def direction(problem: Bilevel, x: Tensors, y: Tensors, step: float, batches: Batches) -> Hypergradient:
        last = inner_steps if truncate is None else min(truncate, inner_steps)
        first, inner = descend(problem.f, x, y, step, inner_steps - last, batches.lower)
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in x]
            inner = [t.detach().requires_grad_() for t in inner]
            for _ in range(last):
                lower = scalar_of(problem.f(leaves, inner, batches.lower))
                grads = torch.autograd.grad(lower, inner, create_graph=True, materialize_grads=True, allow_unused=True)
                first = lower.detach() if first is None else first
                inner = [t - step * grad for t, grad in zip(inner, grads)]
            returned = problem.F(leaves, inner, batches.upper)
            d_x = torch.autograd.grad(scalar_of(returned), leaves, allow_unused=True, materialize_grads=True)
        aux = detach(returned[1]) if isinstance(returned, tuple) else None
        upper = Evaluated(scalar_of(returned).detach(), list(d_x), [], aux, True)
        return Hypergradient(list(d_x), [t.detach() for t in inner], upper, first)

    return _following(alpha, beta, update_x, direction)


def implicit_cg(
    alpha: StepSize,
    beta: StepSize,
    inner_steps: int = 10,
    cg_steps: int = 10,
    update_x: Update | None = None,
) -> Method:
    """Returns the implicit gradient with (f_yy) v = F_y solved by conjugate gradients.

    Pedregosa, ICML 2016; Rajeswaran et al., NeurIPS 2019. f_yy must be positive definite; where it is not, the
    iteration stops at the first direction of curvature <= 0.

    Args:
        alpha: Step size of x.
        beta: Step size of the inner steps.
        inner_steps: Gradient steps on the lower level before each gradient.
        cg_steps: Maximum number of products with f_yy.
        update_x: Update rule; default x - alpha * d_x.
    """
    _positive(inner_steps=inner_steps, cg_steps=cg_steps)

    def solve(times: Callable[[Tensors], Tensors], right: Tensors) -> Tensors:
        solution, left = [torch.zeros_like(t) for t in right], right
        along, size = left, dot(left, left)
        for _ in range(cg_steps):
            image = times(along)
            curvature = dot(along, image)
            if not bool((curvature > 0) & (size > 0)):
                break
            length = float(size / curvature)
            solution, left = add(solution, along, length), add(left, image, -length)
            new = dot(left, left)
            along, size = add(left, along, float(new / size)), new
        return solution

    return _following(alpha, beta, update_x, _implicit(inner_steps, solve))


def neumann(
    alpha: StepSize,
    beta: StepSize,
    inner_steps: int = 10,
    terms: int = 10,
    scale_by: float | None = None,
    update_x: Update | None = None,
) -> Method:
    """Returns the implicit gradient with (f_yy)^-1 as a Neumann series: v = s sum_{j < terms} (I - s f_yy)^j F_y.

    Lorraine, Vicol and Duvenaud, AISTATS 2020.

    Args:
        alpha: Step size of x.
        beta: Step size of the inner steps.
        inner_steps: Gradient steps on the lower level before each gradient.
        terms: Number of terms of the series.
        scale_by: s, below 2 / |f_yy|; default beta at k = 0.
        update_x: Update rule; default x - alpha * d_x.
    """
    _positive(inner_steps=inner_steps, terms=terms)
    s = at(beta, 0) if scale_by is None else scale_by

    def solve(times: Callable[[Tensors], Tensors], right: Tensors) -> Tensors:
        term, total = right, right
        for _ in range(terms - 1):
            term = add(term, times(term), -s)
            total = add(total, term)
        return scale(total, s)

    return _following(alpha, beta, update_x, _implicit(inner_steps, solve))


def descend(
    objective: Any,
    x: Tensors,
    y: Tensors,
    step: float,
    steps: int,
    batch: Any,
    project: Callable[[Tensors], Tensors] | None = None,
) -> tuple[Tensor | None, Tensors]:
    """Returns (the objective at the start, y after projected gradient steps on it); (None, y) for no steps."""
    first = None
    for _ in range(steps):
        found = value_and_grads(objective, x, y, batch, wrt="y")
        first = found.value if first is None else first
        y = add(y, found.grad_y, -step)
        y = y if project is None else project(y)
    return first, y


def _implicit(inner_steps: int, solve: Callable[[Callable[[Tensors], Tensors], Tensors], Tensors]) -> Any:
    """Returns the direction F_x - f_xy v with v = solve(f_yy, F_y)."""

    def direction(problem: Bilevel, x: Tensors, y: Tensors, step: float, batches: Batches) -> Hypergradient:
        first, y = descend(problem.f, x, y, step, inner_steps, batches.lower)
        found = value_and_grads(problem.F, x, y, batches.upper)
        with torch.enable_grad():
            leaves_x = [t.detach().requires_grad_() for t in x]
            leaves_y = [t.detach().requires_grad_() for t in y]
            lower = scalar_of(problem.f(leaves_x, leaves_y, batches.lower))
            grads = torch.autograd.grad(lower, leaves_y, create_graph=True, materialize_grads=True, allow_unused=True)

        def product(leaves: Tensors, v: Tensors) -> Tensors:
            """The derivative of grad_y f . v with respect to `leaves`."""
            pairs = [(grad, part) for grad, part in zip(grads, v) if grad.requires_grad]
            if not pairs:
                return [torch.zeros_like(t) for t in leaves]
            outputs, weights = zip(*pairs)
            return list(
                torch.autograd.grad(
                    outputs, leaves, weights, retain_graph=True, allow_unused=True, materialize_grads=True
                )
            )

        v = solve(lambda u: product(leaves_y, u), found.grad_y)
        return Hypergradient(subtract(found.grad_x, product(leaves_x, v)), y, found, first)

    return direction


def _following(alpha: StepSize, beta: StepSize, update_x: Update | None, direction: Any) -> Method:
    """Returns the method that moves x along `direction` and keeps the y found on the way."""
    rule = update_x or gradient_descent()

    def init(problem: Bilevel, x: Tensors, y: Tensors, batches: Batches) -> State:
        if problem.g is not None or problem.project_y is not None:
            raise ValueError(
                "This method needs the Hessian of a smooth lower level without constraints, and the problem has g or "
                "project_y. Use moreau(...)."
            )
        return State(x_rule=rule.init(x))

    def step(
        problem: Bilevel, x: Tensors, y: Tensors, state: State, batches: Batches
    ) -> tuple[Tensors, Tensors, State, Info]:
        a, b = at(alpha, state.k), at(beta, state.k)
        found = direction(problem, x, y, b, batches)
        new_x, x_rule = rule.apply(found.d_x, a, x, state.x_rule)
        norms = {"d_x": norm(found.d_x), "d_y": norm(subtract(found.y, y)) / b}
        info = Info(a, b, norms, F=found.upper.value, f=found.f, F_aux=found.upper.aux)
        return problem.onto_x(new_x), found.y, State(state.k + 1, x_rule), info

    return make_method(init, step)


def _positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1.")
