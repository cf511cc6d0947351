"""The Moreau-envelope single-loop method: Algorithm 1 of Liu et al., ICML 2024 (MEHA), and two cheaper orders of it.

    theta+ = Prox_{eta g~}( theta - eta ( grad_y f(x,theta) + (theta - y)/gamma ) )                (9)
    d_x    = grad_x F(x,y)/c_k + grad_x phi(x,y) - grad_x phi(x,theta+)                            (10)
    x+     = Proj_X( x - alpha d_x )                                                               (11)
    d_y    = grad_y F(x+,y)/c_k + grad_y f(x+,y) - (y - theta+)/gamma                              (12)
    y+     = Prox_{beta g~}( y - beta d_y )                                                        (13)

with phi = f + g, g~ = g + indicator of Y, and c_k = c (k+1)^p. In (12) theta+ is a constant.

Orders (number of evaluations, forward and backward, of one step):

    gauss-seidel (6)  as printed
    jacobi       (4)  d_y at the old x, so that each of F and f is evaluated once at (x, y)
    lagged       (3)  besides, d_x takes theta in place of theta+, so that (9) and (10) share one evaluation at
                      (x, theta).
                      With minibatches it has an advantage of its own: theta was made before the batch was drawn on
                      which f(x,y) and f(x,theta) are compared, so the comparison is not biased.

The paper's theory covers gauss-seidel alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas_moreau.bilevel.automatic import Constants, Rule, State, Taken
from nas_moreau.bilevel.contract import Info, Method, StepSize, at
from nas_moreau.bilevel.following import FOLLOWED
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.step_sizes import MEASURED
from nas_moreau.bilevel.tensors import (
    Evaluated,
    Tensors,
    add,
    dot,
    evaluate,
    evaluate_together,
    grad_x_of_g,
    norm,
    scale,
    subtract,
)
from nas_moreau.bilevel.updates import Update, gradient_descent

ORDERS = ("gauss-seidel", "jacobi", "lagged")
Automatic = StepSize | str


class Scheme(NamedTuple):
    """How a step is taken: the order, the steps (9) in it, and the update rules of x, y and theta."""

    order: str
    theta_steps: int
    x: Update
    y: Update
    theta: Update


def moreau(
    alpha: Automatic = "auto",
    beta: Automatic = "auto",
    eta: Automatic = "auto",
    gamma: Automatic = "auto",
    c: Automatic = "auto",
    p: float = 0.49,
    order: str = "gauss-seidel",
    theta_steps: int = 1,
    update_x: Update | None = None,
    update_y: Update | None = None,
    update_theta: Update | None = None,
) -> Method:
    """Returns the Moreau-envelope method.

    With all constants given, a step never waits for the device and works on `meta` tensors. With one of them
    "auto", `init` measures curvatures, and the step reads a few norms back every 10 steps: those of step_sizes.py
    where x moves by its direction, those of following.py, meant for networks, where `update_x` is given.

    Args:
        alpha: Step size of x: a number, a function of k, or "auto".
        beta: Step size of y, likewise.
        eta: Step size of theta, likewise.
        gamma: Of the envelope, likewise; the theory asks for gamma < 1/(2 rho), rho the weak convexity of the
            lower level in y.
        c: A number for the penalty c_k = c (k+1)^p, or c_k itself as a function of k, or "auto".
        p: 0 <= p < 1/2.
        order: "gauss-seidel", "jacobi" or "lagged".
        theta_steps: Steps (9) in one step of the method.
        update_x, update_y, update_theta: Update rules; default params - step * direction.

    Raises:
        ValueError: A constant is out of its range.
    """
    constants = {"alpha": alpha, "beta": beta, "eta": eta, "gamma": gamma, "c": c}
    _check(constants, p, order, theta_steps, update_x)
    rule: Rule | None = None
    if any(isinstance(value, str) for value in constants.values()):
        rule = MEASURED if update_x is None else FOLLOWED
    scheme = Scheme(order, theta_steps, *(given or gradient_descent() for given in (update_x, update_y, update_theta)))

    def init(problem: Bilevel, x: Tensors, y: Tensors, upper_batch: Any = None, lower_batch: Any = None) -> State:
        x, y = [t.detach() for t in x], [t.detach() for t in y]
        theta = [t.clone() for t in y]
        tuning = None
        if rule is not None:
            given = [None if isinstance(value, str) else at(value, 0) for value in (c, gamma)]
            tuning = rule.begin(problem, x, y, upper_batch, lower_batch, *given)
        return State(theta, 0, scheme.x.init(x), scheme.y.init(y), scheme.theta.init(theta), tuning)

    def constants_at(k: int, tuning: Any) -> Constants:
        if isinstance(c, str):
            assert rule is not None
            c_k = rule.penalty(tuning, k, p)
        else:
            c_k = c(k) if callable(c) else c * (k + 1) ** p
        gamma_k = tuning.gamma if isinstance(gamma, str) else at(gamma, k)
        chosen = (0.0, 0.0, 0.0) if rule is None else rule.sizes(tuning, c_k, gamma_k)
        a, b, e = (own if isinstance(given, str) else at(given, k) for given, own in zip((alpha, beta, eta), chosen))
        return Constants(a, b, e, gamma_k, c_k)

    def step(
        problem: Bilevel, x: Tensors, y: Tensors, state: State, upper_batch: Any = None, lower_batch: Any = None
    ) -> tuple[Tensors, Tensors, State, Info]:
        x, y = [t.detach() for t in x], [t.detach() for t in y]
        state = state._replace(theta=[t.detach() for t in state.theta])
        # step_sizes.py looks at grad_y f(x, theta), which is not to be had from one pass for all
        shares = order == "lagged" and theta_steps == 1 and problem.g is None and rule is not MEASURED
        take = _at_once if shares and problem.together is not None else _in_turn
        taken, info = take(scheme, problem, x, y, state, constants_at(state.k, state.tuning), upper_batch, lower_batch)
        if rule is None:
            return taken.new_x, taken.new_y, taken.new_state, info
        return *rule.after(problem, taken), info

    def at_penalty(value: float) -> Method:
        return moreau(alpha, beta, eta, gamma, lambda k: value, p, order, theta_steps, update_x, update_y, update_theta)

    return Method(init, step, at_penalty, rule)


def _check(constants: dict[str, Automatic], p: float, order: str, theta_steps: int, update_x: Update | None) -> None:
    """Raises ValueError where an argument of `moreau` is out of its range."""
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}; use one of {', '.join(ORDERS)}.")
    for name, value in constants.items():
        if isinstance(value, str):
            if value != "auto":
                raise ValueError(f"{name} is {value!r}; give a number, a function of k, or 'auto'.")
        elif not callable(value) and not value > 0:
            raise ValueError(f"{name} is {value}; it must be positive.")
    if not 0 <= p < 0.5:
        raise ValueError(f"p is {p}; the theory needs 0 <= p < 1/2.")
    if theta_steps < 1:
        raise ValueError(f"theta_steps is {theta_steps}; at least one step of theta is needed.")
    if update_x is not None and constants["alpha"] == "auto" and not update_x.finds_length:
        raise ValueError(
            "alpha is 'auto', but an update rule of x has its own scale. Give a number, or distance_over_gradients()."
        )


def _in_turn(
    scheme: Scheme, problem: Bilevel, x: Tensors, y: Tensors, state: State, used: Constants, upper: Any, lower: Any
) -> tuple[Taken, Info]:
    """Takes a step by separate evaluations of F and f."""
    order, theta, theta_rule = scheme.order, state.theta, state.theta_rule

    # (9); `lagged` takes grad_x f(x, theta) from the evaluation of the first step
    first = evaluate(problem.at_theta, x, theta, lower, order == "lagged", True)
    for i in range(scheme.theta_steps):
        inner = first if i == 0 else evaluate(problem.at_theta, x, theta, lower, False, True)
        d_theta = add(inner.grad_y, subtract(theta, y), 1 / used.gamma)
        last_theta = theta
        moved, theta_rule = scheme.theta.apply(d_theta, used.eta, theta, theta_rule)
        theta = problem.prox_y(x, moved, used.eta)

    # (10)
    shared = order != "gauss-seidel"  # one evaluation at (x, y) gives both gradients
    F = evaluate(problem.F, x, y, upper, True, shared)
    f = evaluate(problem.f, x, y, lower, True, shared)
    at_theta, place = first, state.theta
    if order != "lagged":
        at_theta, place = evaluate(problem.at_theta, x, theta, lower, True, False), theta
    _check_dependence(problem, f, at_theta)
    phi_y, phi_theta = f.grad_x, at_theta.grad_x
    if problem.g is not None:
        phi_y = add(phi_y, grad_x_of_g(problem.g, x, y))
        phi_theta = add(phi_theta, grad_x_of_g(problem.g, x, place))
    difference = subtract(phi_y, phi_theta)
    d_x = add(difference, F.grad_x, 1 / used.c)

    # (11)
    new_x, x_rule = scheme.x.apply(d_x, used.alpha, x, state.x_rule)
    new_x = problem.onto_x(new_x)

    # (12), with theta+ a constant
    at_x, F_y, f_y = x, F, f
    if not shared:
        at_x = new_x
        F_y = evaluate(problem.F, new_x, y, upper, False, True)
        f_y = evaluate(problem.f, new_x, y, lower, False, True)
    grad_y = add(f_y.grad_y, F_y.grad_y, 1 / used.c)
    apart = subtract(y, theta)
    d_y = add(grad_y, apart, -1 / used.gamma)

    # (13)
    new_y, y_rule = scheme.y.apply(d_y, used.beta, y, state.y_rule)
    new_y = problem.prox_y(at_x, new_y, used.beta)

    norms = {
        "F_x_over_c": norm(F.grad_x) / used.c, "F_y_over_c": norm(F_y.grad_y) / used.c,
        "phi_x_y": norm(phi_y), "phi_x_theta": norm(phi_theta), "difference": norm(difference),
        "d_x": norm(d_x), "d_y": norm(d_y), "d_theta": norm(d_theta), "distance": norm(apart),
    }  # fmt: skip
    tiny = torch.finfo(norms["d_x"].dtype).tiny
    cosine = dot(F.grad_x, difference) / (norms["F_x_over_c"] * norms["difference"] * used.c).clamp(min=tiny)
    new = State(theta, state.k + 1, x_rule, y_rule, theta_rule, state.tuning)
    taken = Taken(
        x, y, state, new_x, new_y, new, used, (upper, lower), norms, scheme.theta.init,
        d_x=d_x, theta_of_x=place, grad_y=grad_y, x_of_y=at_x, last_theta=last_theta, grad_theta=inner.grad_y,
    )  # fmt: skip
    values = (F.value, f.value, at_theta.value)
    return taken, _info(used, norms, values, cosine, (F.aux, f.aux))


def _at_once(
    scheme: Scheme, problem: Bilevel, x: Tensors, y: Tensors, state: State, used: Constants, upper: Any, lower: Any
) -> tuple[Taken, Info]:
    """Takes a lagged step by one backward pass: F/c + f(y) - f(theta) has d_x, and all but the pull of theta."""
    theta = state.theta
    found = evaluate_together(problem.together, x, y, theta, upper, lower, used.c)
    d_theta = subtract(scale(subtract(theta, y), 1 / used.gamma), found.by_theta)
    moved, theta_rule = scheme.theta.apply(d_theta, used.eta, theta, state.theta_rule)
    new_theta = problem.prox_y(x, moved, used.eta)
    new_x, x_rule = scheme.x.apply(found.by_x, used.alpha, x, state.x_rule)
    new_x = problem.onto_x(new_x)
    apart = subtract(y, new_theta)
    d_y = add(found.by_y, apart, -1 / used.gamma)
    new_y, y_rule = scheme.y.apply(d_y, used.beta, y, state.y_rule)
    new_y = problem.prox_y(x, new_y, used.beta)
    norms = {"d_x": norm(found.by_x), "d_y": norm(d_y), "d_theta": norm(d_theta), "distance": norm(apart)}
    new = State(new_theta, state.k + 1, x_rule, y_rule, theta_rule, state.tuning)
    taken = Taken(
        x, y, state, new_x, new_y, new, used, (upper, lower), norms, scheme.theta.init,
        d_x=found.by_x, theta_of_x=theta, grad_y=found.by_y, x_of_y=x, last_theta=theta, grad_theta=None,
    )  # fmt: skip
    return taken, _info(used, norms, found.values)


def _info(
    used: Constants,
    norms: dict[str, Tensor],
    values: tuple[Tensor, Tensor, Tensor],
    cosine: Tensor | None = None,
    aux: tuple[Any, Any] = (None, None),
) -> Info:
    """Returns what happened; values are those of F, f and f at theta, aux what came beside F and f."""
    F, f, f_theta = values
    return Info(
        used.alpha, used.beta, norms, F=F, f=f, f_theta=f_theta, c=used.c, eta=used.eta, gamma=used.gamma,
        cosine=cosine, F_aux=aux[0], f_aux=aux[1],
    )  # fmt: skip


def _check_dependence(problem: Bilevel, at_y: Evaluated, at_theta: Evaluated) -> None:
    """Raises where x has got lost on its way into the lower level, which would silently drop a term of (10)."""
    if at_y.uses_x != at_theta.uses_x:
        here, there = ("y", "theta") if at_y.uses_x else ("theta", "y")
        raise ValueError(
            f"f depends on x at {here} but not at {there}: x was probably copied into a module or detached. "
            "Let both evaluations use the tensors they are given as x."
        )
    if not at_y.uses_x and problem.g is None:
        raise ValueError(
            "The lower level does not depend on x, so this is no bilevel problem. Check that f uses the x it is given."
        )
