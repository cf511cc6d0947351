"""Single-level reformulations other than the Moreau envelope: BOME, F2SA, V-PBGD, and the gradient-norm penalty.

With v(x) = min f(x, .), the first three work on q(x, y) = f(x, y) - v(x), whose gradient in x needs a near-minimiser
theta: q_x = f_x(x, y) - f_x(x, theta). All need a lower level without g; projections onto X and onto Y are applied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from nas_moreau.bilevel.contract import Info, Method, StepSize, at
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.tensors import Evaluated, Tensors, add, dot, evaluate, norm, scalar_of, subtract
from nas_moreau.bilevel.updates import Update, gradient_descent


class PenaltyState(NamedTuple):
    """theta (the lower level's near-minimiser), the steps done, and the states of the update rules."""

    theta: Tensors
    k: int
    x_rule: Any = ()
    y_rule: Any = ()


class Rules(NamedTuple):
    """What acts on d_x and on d_y."""

    x: Update
    y: Update


class Gap(NamedTuple):
    """q = f(x, y) - f(x, theta), its gradient, and the two evaluations of f."""

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
    rules = _rules(update_x, update_y)

    def step(
        problem: Bilevel, x: Tensors, y: Tensors, state: PenaltyState, upper_batch: Any = None, lower_batch: Any = None
    ) -> tuple[Tensors, Tensors, PenaltyState, Info]:
        a, b, e = (at(size, state.k) for size in (alpha, beta, eta))
        x, y = [t.detach() for t in x], [t.detach() for t in y]
        theta = _descend(problem, x, y, e, inner_steps, lower_batch)
        gap = _gap(problem, x, y, theta, lower_batch)
        upper = evaluate(problem.F, x, y, upper_batch, True, True)
        square = dot(gap.grad_x, gap.grad_x) + dot(gap.grad_y, gap.grad_y)
        inner = dot(upper.grad_x, gap.grad_x) + dot(upper.grad_y, gap.grad_y)
        weight = (barrier - inner / square.clamp(min=torch.finfo(square.dtype).tiny)).clamp(min=0)
        d_x = [s + weight * t for s, t in zip(upper.grad_x, gap.grad_x)]
        d_y = [s + weight * t for s, t in zip(upper.grad_y, gap.grad_y)]
        return _finish(problem, x, y, theta, state, rules, d_x, d_y, (a, b, None), upper, gap)

    return _method(rules, step)


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
    rules = _rules(update_x, update_y)

    def step(
        problem: Bilevel, x: Tensors, y: Tensors, state: PenaltyState, upper_batch: Any = None, lower_batch: Any = None
    ) -> tuple[Tensors, Tensors, PenaltyState, Info]:
        a, b, e, weight = (at(size, state.k) for size in (alpha, beta, eta, penalty))
        x, y = [t.detach() for t in x], [t.detach() for t in y]
        theta = _descend(problem, x, state.theta, e, 1, lower_batch)
        upper = evaluate(problem.F, x, y, upper_batch, False, True)
        lower = evaluate(problem.f, x, y, lower_batch, False, True)
        d_y = add(upper.grad_y, lower.grad_y, weight)
        new_y, y_rule = rules.y.apply(d_y, b, y, state.y_rule)
        new_y = _onto_y(problem, new_y)
        upper = evaluate(problem.F, x, new_y, upper_batch, True, False)
        gap = _gap(problem, x, new_y, theta, lower_batch, wrt_y=False)
        d_x = add(upper.grad_x, gap.grad_x, weight)
        still = Rules(rules.x, gradient_descent())
        new_x, _, new, info = _finish(
            problem, x, new_y, theta, state, still, d_x, [torch.zeros_like(t) for t in y], (a, b, e), upper, gap
        )
        return new_x, new_y, new._replace(y_rule=y_rule), info._replace(norms=info.norms | {"d_y": norm(d_y)})

    return _method(rules, step)


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

        theta <- `inner_steps` gradient steps on f(x, .) from the theta before
        (x, y) <- Proj( (x, y) - (alpha, beta) ( grad F + penalty grad q ) )

    Args:
        alpha: Step size of x.
        beta: Step size of y.
        eta: Step size of theta.
        penalty: gamma of the paper, as a number or a function of k.
        inner_steps: T.
        update_x, update_y: Update rules; default params - step * direction.
    """
    rules = _rules(update_x, update_y)

    def step(
        problem: Bilevel, x: Tensors, y: Tensors, state: PenaltyState, upper_batch: Any = None, lower_batch: Any = None
    ) -> tuple[Tensors, Tensors, PenaltyState, Info]:
        a, b, e, weight = (at(size, state.k) for size in (alpha, beta, eta, penalty))
        x, y = [t.detach() for t in x], [t.detach() for t in y]
        theta = _descend(problem, x, state.theta, e, inner_steps, lower_batch)
        gap = _gap(problem, x, y, theta, lower_batch)
        upper = evaluate(problem.F, x, y, upper_batch, True, True)
        d_x, d_y = add(upper.grad_x, gap.grad_x, weight), add(upper.grad_y, gap.grad_y, weight)
        return _finish(problem, x, y, theta, state, rules, d_x, d_y, (a, b, e), upper, gap)

    return _method(rules, step)


def fixed_penalty(alpha: StepSize, beta: StepSize, penalty: StepSize = 10.0) -> Method:
    """Returns gradient descent on F + penalty/2 |grad_y f|^2 (Mehra and Hamm, ACML 2021, eq. 3, at a fixed penalty).

    It needs second derivatives, and like every stationarity penalty it takes maxima of f for solutions.

    Args:
        alpha: Step size of x.
        beta: Step size of y.
        penalty: gamma of the paper.
    """

    def step(
        problem: Bilevel, x: Tensors, y: Tensors, state: PenaltyState, upper_batch: Any = None, lower_batch: Any = None
    ) -> tuple[Tensors, Tensors, PenaltyState, Info]:
        a, b, weight = (at(size, state.k) for size in (alpha, beta, penalty))

        def objective(x: Tensors, y: Tensors, batch: Any) -> Any:
            lower = scalar_of(problem.f(x, y, batch[1]))
            leaves = [t if t.requires_grad else t.requires_grad_() for t in y]
            grads = torch.autograd.grad(lower, leaves, create_graph=True, allow_unused=True, materialize_grads=True)
            upper = scalar_of(problem.F(x, y, batch[0]))
            total = upper + 0.5 * weight * torch.stack([grad.square().sum() for grad in grads]).sum()
            return total, (upper, lower)

        x, y = [t.detach() for t in x], [t.detach() for t in y]
        found = evaluate(objective, x, y, (upper_batch, lower_batch), True, True)
        new_x, new_y = problem.onto_x(add(x, found.grad_x, -a)), _onto_y(problem, add(y, found.grad_y, -b))
        norms = {"d_x": norm(found.grad_x), "d_y": norm(found.grad_y)}
        upper, lower = found.aux
        info = Info(a, b, norms, F=upper, f=lower)
        return new_x, new_y, PenaltyState(new_y, state.k + 1), info

    return _method(_rules(None, None), step)


def _rules(update_x: Update | None, update_y: Update | None) -> Rules:
    return Rules(update_x or gradient_descent(), update_y or gradient_descent())


def _method(rules: Rules, step: Callable[..., Any]) -> Method:
    """Returns the method with this step, whose state begins with theta at y."""

    def init(
        problem: Bilevel, x: Tensors, y: Tensors, upper_batch: Any = None, lower_batch: Any = None
    ) -> PenaltyState:
        if problem.g is not None:
            raise ValueError("This method needs a smooth lower level, and the problem has g. Use moreau(...).")
        return PenaltyState([t.detach().clone() for t in y], 0, rules.x.init(x), rules.y.init(y))

    return Method(init, step)


def _onto_y(problem: Bilevel, y: Tensors) -> Tensors:
    return y if problem.project_y is None else problem.project_y(y)


def _descend(problem: Bilevel, x: Tensors, theta: Tensors, step: float, steps: int, batch: Any) -> Tensors:
    theta = [t.detach() for t in theta]
    for _ in range(steps):
        found = evaluate(problem.at_theta, x, theta, batch, False, True)
        theta = _onto_y(problem, add(theta, found.grad_y, -step))
    return theta


def _gap(problem: Bilevel, x: Tensors, y: Tensors, theta: Tensors, batch: Any, wrt_y: bool = True) -> Gap:
    at_y = evaluate(problem.f, x, y, batch, True, wrt_y)
    at_theta = evaluate(problem.at_theta, x, theta, batch, True, False)
    return Gap(subtract(at_y.grad_x, at_theta.grad_x), at_y.grad_y, at_y, at_theta)


def _finish(
    problem: Bilevel,
    x: Tensors,
    y: Tensors,
    theta: Tensors,
    state: PenaltyState,
    rules: Rules,
    d_x: Tensors,
    d_y: Tensors,
    sizes: tuple[float, float, float | None],
    upper: Evaluated,
    gap: Gap,
) -> tuple[Tensors, Tensors, PenaltyState, Info]:
    """Moves x and y, and says what happened; d_x and d_y are gradients of F + penalty * q, so `Info.c` stays None."""
    new_x, x_rule = rules.x.apply(d_x, sizes[0], x, state.x_rule)
    new_y, y_rule = rules.y.apply(d_y, sizes[1], y, state.y_rule)
    new_x, new_y = problem.onto_x(new_x), _onto_y(problem, new_y)
    norms = {
        "phi_x_y": norm(gap.at_y.grad_x), "phi_x_theta": norm(gap.at_theta.grad_x), "difference": norm(gap.grad_x),
        "d_x": norm(d_x), "d_y": norm(d_y), "distance": norm(subtract(y, theta)),
    }  # fmt: skip
    alpha, beta, eta = sizes
    info = Info(
        alpha, beta, norms, F=upper.value, f=gap.at_y.value, f_theta=gap.at_theta.value, eta=eta,
        F_aux=upper.aux, f_aux=gap.at_y.aux,
    )  # fmt: skip
    return new_x, new_y, PenaltyState(theta, state.k + 1, x_rule, y_rule), info
