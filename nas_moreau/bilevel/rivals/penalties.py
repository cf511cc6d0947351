"""Single-level reformulations other than the Moreau envelope: BOME, F2SA, V-PBGD, and the gradient-norm penalty.

With v(x) = min f(x, .), the first three work on q(x, y) = f(x, y) - v(x), whose gradient in x needs a near-minimiser
theta: q_x = f_x(x, y) - f_x(x, theta). All need a lower level without g; projections onto X and onto Y are applied.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from nas_moreau.bilevel.method import Batches, Info, Method, State, StepSize, at, make_method
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.rivals.hypergradient import descend
from nas_moreau.bilevel.tensors import (
    Evaluated,
    Tensors,
    add,
    dot,
    grad_y,
    norm,
    scalar_of,
    subtract,
    value_and_grads,
)
from nas_moreau.bilevel.updates import Update, gradient_descent

Stepped = tuple[Tensors, Tensors, State, Info]


class Gap(NamedTuple):
    """q = f(x, y) - f(x, theta): its gradient, and the two evaluations of f."""

    grad_x: Tensors
    grad_y: Tensors
    at_y: Evaluated
    at_theta: Evaluated


def bome(
    alpha: StepSize,
    beta: StepSize,
    eta: StepSize,
    inner_steps: int = 10,
    barrier: float = 0.5,
    update_x: Update | None = None,
    update_y: Update | None = None,
) -> Method:
    """Returns BOME! (Ye et al., NeurIPS 2022, Algorithm 1): dynamic barrier gradient descent on F where q <= 0.

        theta = `inner_steps` gradient steps on f(x, .) from y
        lambda = max( (barrier |grad q|^2 - <grad F, grad q>) / |grad q|^2, 0 )
        (x, y) <- (x, y) - (alpha, beta) (grad F + lambda grad q)

    Args:
        alpha: Step size of x.
        beta: Step size of y.
        eta: Step size of theta.
        inner_steps: T.
        barrier: eta of the paper, in (0, 1).
        update_x, update_y: Update rules; default params - step * direction.
    """
    rule_x, rule_y = update_x or gradient_descent(), update_y or gradient_descent()

    def step(problem: Bilevel, x: Tensors, y: Tensors, state: State, batches: Batches) -> Stepped:
        a, b, e = (at(size, state.k) for size in (alpha, beta, eta))
        _, theta = descend(problem.at_theta, x, y, e, inner_steps, batches.lower, problem.project_y)
        gap = _gap(problem, x, y, theta, batches.lower)
        upper = value_and_grads(problem.F, x, y, batches.upper)
        square = dot(gap.grad_x, gap.grad_x) + dot(gap.grad_y, gap.grad_y)
        inner = dot(upper.grad_x, gap.grad_x) + dot(upper.grad_y, gap.grad_y)
        weight = (barrier - inner / square.clamp(min=torch.finfo(square.dtype).tiny)).clamp(min=0)
        d_x = [s + weight * t for s, t in zip(upper.grad_x, gap.grad_x)]
        d_y = [s + weight * t for s, t in zip(upper.grad_y, gap.grad_y)]
        new_x, x_rule = rule_x.apply(d_x, a, x, state.x_rule)
        new_y, y_rule = rule_y.apply(d_y, b, y, state.y_rule)
        info = _info(a, b, upper, gap, d_x=d_x, d_y=d_y, distance=subtract(y, theta))
        new = State(state.k + 1, x_rule, y_rule, theta)
        return problem.onto_x(new_x), _onto_y(problem, new_y), new, info

    return _method(rule_x, rule_y, step)


def f2sa(
    alpha: StepSize,
    beta: StepSize,
    eta: StepSize,
    penalty: StepSize = lambda k: 10.0 * (k + 1) ** 0.25,
    update_x: Update | None = None,
    update_y: Update | None = None,
) -> Method:
    """Returns F2SA (Kwon et al., ICML 2023, Algorithm 1 with T = 1): first-order, with a growing multiplier.

        theta <- theta - eta grad_y f(x, theta)
        y     <- y - beta ( grad_y F(x, y) + lambda_k grad_y f(x, y) )
        x     <- x - alpha ( grad_x F(x, y+) + lambda_k ( grad_x f(x, y+) - grad_x f(x, theta+) ) )

    Args:
        alpha: Step size of x.
        beta: Step size of y; it must fall as 1/lambda_k.
        eta: Step size of theta.
        penalty: lambda_k, as a number or a function of k.
        update_x, update_y: Update rules; default params - step * direction.
    """
    rule_x, rule_y = update_x or gradient_descent(), update_y or gradient_descent()

    def step(problem: Bilevel, x: Tensors, y: Tensors, state: State, batches: Batches) -> Stepped:
        a, b, e, weight = (at(size, state.k) for size in (alpha, beta, eta, penalty))
        _, theta = descend(problem.at_theta, x, list(state.theta), e, 1, batches.lower, problem.project_y)
        d_y = add(grad_y(problem.F, x, y, batches.upper), grad_y(problem.f, x, y, batches.lower), weight)
        new_y, y_rule = rule_y.apply(d_y, b, y, state.y_rule)
        new_y = _onto_y(problem, new_y)
        upper = value_and_grads(problem.F, x, new_y, batches.upper, wrt="x")
        gap = _gap(problem, x, new_y, theta, batches.lower, wrt="x")
        d_x = add(upper.grad_x, gap.grad_x, weight)
        new_x, x_rule = rule_x.apply(d_x, a, x, state.x_rule)
        info = _info(a, b, upper, gap, d_x=d_x, d_y=d_y, distance=subtract(new_y, theta))
        new = State(state.k + 1, x_rule, y_rule, theta)
        return problem.onto_x(new_x), new_y, new, info._replace(eta=e)

    return _method(rule_x, rule_y, step)


def v_pbgd(
    alpha: StepSize,
    beta: StepSize,
    eta: StepSize,
    penalty: StepSize = 10.0,
    inner_steps: int = 1,
    update_x: Update | None = None,
    update_y: Update | None = None,
) -> Method:
    """Returns V-PBGD (Shen and Chen, ICML 2023, Algorithm 1): projected gradient descent on F + penalty * q.

        theta <- `inner_steps` gradient steps on f(x, .) from the previous theta
        (x, y) <- Proj( (x, y) - (alpha, beta) ( grad F + penalty grad q ) )

    Args:
        alpha: Step size of x.
        beta: Step size of y.
        eta: Step size of theta.
        penalty: gamma of the paper, as a number or a function of k.
        inner_steps: T.
        update_x, update_y: Update rules; default params - step * direction.
    """
    rule_x, rule_y = update_x or gradient_descent(), update_y or gradient_descent()

    def step(problem: Bilevel, x: Tensors, y: Tensors, state: State, batches: Batches) -> Stepped:
        a, b, e, weight = (at(size, state.k) for size in (alpha, beta, eta, penalty))
        before = list(state.theta)
        _, theta = descend(problem.at_theta, x, before, e, inner_steps, batches.lower, problem.project_y)
        gap = _gap(problem, x, y, theta, batches.lower)
        upper = value_and_grads(problem.F, x, y, batches.upper)
        d_x, d_y = add(upper.grad_x, gap.grad_x, weight), add(upper.grad_y, gap.grad_y, weight)
        new_x, x_rule = rule_x.apply(d_x, a, x, state.x_rule)
        new_y, y_rule = rule_y.apply(d_y, b, y, state.y_rule)
        info = _info(a, b, upper, gap, d_x=d_x, d_y=d_y, distance=subtract(y, theta))
        new = State(state.k + 1, x_rule, y_rule, theta)
        return problem.onto_x(new_x), _onto_y(problem, new_y), new, info._replace(eta=e)

    return _method(rule_x, rule_y, step)


def fixed_penalty(
    alpha: StepSize,
    beta: StepSize,
    penalty: StepSize = 10.0,
    update_x: Update | None = None,
    update_y: Update | None = None,
) -> Method:
    """Returns gradient descent on F + penalty/2 |grad_y f|^2 (Mehra and Hamm, ACML 2021, eq. 3, at a fixed penalty).

    It needs second derivatives, and like every stationarity penalty it takes maxima of f for solutions.

    Args:
        alpha: Step size of x.
        beta: Step size of y.
        penalty: gamma of the paper.
        update_x, update_y: Update rules; default params - step * direction.
    """
    rule_x, rule_y = update_x or gradient_descent(), update_y or gradient_descent()

    def step(problem: Bilevel, x: Tensors, y: Tensors, state: State, batches: Batches) -> Stepped:
        a, b, weight = (at(size, state.k) for size in (alpha, beta, penalty))

        def objective(x: Tensors, y: Tensors, batches: Batches) -> Any:
            lower = scalar_of(problem.f(x, y, batches.lower))
            grads = torch.autograd.grad(lower, y, create_graph=True, allow_unused=True, materialize_grads=True)
            upper = scalar_of(problem.F(x, y, batches.upper))
            total = upper + 0.5 * weight * torch.stack([grad.square().sum() for grad in grads]).sum()
            return total, (upper, lower)

        found = value_and_grads(objective, x, y, batches)
        new_x, x_rule = rule_x.apply(found.grad_x, a, x, state.x_rule)
        new_y, y_rule = rule_y.apply(found.grad_y, b, y, state.y_rule)
        upper, lower = found.aux
        info = Info(a, b, {"d_x": norm(found.grad_x), "d_y": norm(found.grad_y)}, F=upper, f=lower)
        return problem.onto_x(new_x), _onto_y(problem, new_y), State(state.k + 1, x_rule, y_rule), info

    return _method(rule_x, rule_y, step, theta=False)


def _method(rule_x: Update, rule_y: Update, step: Any, theta: bool = True) -> Method:
    """Returns the method with this step; theta, where it has one, begins at y."""

    def init(problem: Bilevel, x: Tensors, y: Tensors, batches: Batches) -> State:
        if problem.g is not None:
            raise ValueError("This method needs a smooth lower level, and the problem has g. Use moreau(...).")
        return State(0, rule_x.init(x), rule_y.init(y), [t.clone() for t in y] if theta else ())

    return make_method(init, step)


def _onto_y(problem: Bilevel, y: Tensors) -> Tensors:
    return y if problem.project_y is None else problem.project_y(y)


def _gap(problem: Bilevel, x: Tensors, y: Tensors, theta: Tensors, batch: Any, wrt: str = "xy") -> Gap:
    at_y = value_and_grads(problem.f, x, y, batch, wrt)
    at_theta = value_and_grads(problem.at_theta, x, theta, batch, wrt="x")
    return Gap(subtract(at_y.grad_x, at_theta.grad_x), at_y.grad_y, at_y, at_theta)


def _info(alpha: float, beta: float, upper: Evaluated, gap: Gap, **directions: Tensors) -> Info:
    """Returns what happened; d_x and d_y are gradients of F + penalty * q, so `Info.c` stays None."""
    terms = {"phi_x_y": gap.at_y.grad_x, "phi_x_theta": gap.at_theta.grad_x, "difference": gap.grad_x, **directions}
    return Info(
        alpha,
        beta,
        {name: norm(term) for name, term in terms.items()},
        F=upper.value,
        f=gap.at_y.value,
        f_theta=gap.at_theta.value,
        F_aux=upper.aux,
        f_aux=gap.at_y.aux,
    )
