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

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas_moreau.bilevel.following import Followed, begin, look
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.step_sizes import (
    LONGEST,
    Tuning,
    at_top,
    climb,
    measured_again,
    penalty,
    sizes,
    start,
    steeper,
)
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
StepSize = float | Callable[[int], float]
Automatic = StepSize | str
CHECK_EVERY = 10
"""Steps between two looks at whether the iteration has settled, with an automatic c."""


class Method(NamedTuple):
    """init(problem, x, y) -> state; step(problem, x, y, state, upper_batch, lower_batch) -> (x, y, state, info).

    at_penalty(c) is the same method at a fixed penalty c, None where there is none; climbs says whether c is automatic.
    """

    init: Callable[..., Any]
    step: Callable[..., tuple[Tensors, Tensors, Any, Any]]
    at_penalty: Callable[[float], Method] | None = None
    climbs: bool = False


class State(NamedTuple):
    """What a step hands to the next: theta, the steps done, the states of the update rules, and automatic constants."""

    theta: Tensors
    k: int
    x_rule: Any
    y_rule: Any
    theta_rule: Any
    tuning: Tuning | Followed | None = None


class Info(NamedTuple):
    """What happened in a step; tensors are 0-dim, detached and on the device (nothing here waits for it).

    Attributes:
        F: F(x, y); None where a method does not look at it.
        f: f(x, y).
        f_theta: f at theta, on the batch of f (`lagged`: at the old theta).
        c: c_k.
        alpha, beta, eta, gamma: The step sizes and gamma used.
        norms: Euclidean norms of "F_x/c", "F_y/c", "phi_x(y)", "phi_x(theta)", the "difference" of these two,
            "d_x", "d_y", "d_theta", and "y-theta".
        cosine: Of the angle between F_x/c and the difference.
        F_aux, f_aux: What F and f returned beside their values.
    """

    F: Tensor | None
    f: Tensor
    f_theta: Tensor | None
    c: float | None
    alpha: float
    beta: float
    eta: float | None
    gamma: float | None
    norms: dict[str, Tensor]
    cosine: Tensor | None
    F_aux: Any
    f_aux: Any


def at(step_size: Automatic, k: int) -> float:
    """Returns a step size that is a number, or a function of the step, at step k."""
    return step_size(k) if callable(step_size) else float(step_size)


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
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}; use one of {', '.join(ORDERS)}.")
    named = {"alpha": alpha, "beta": beta, "eta": eta, "gamma": gamma, "c": c}
    for name, value in named.items():
        if isinstance(value, str):
            if value != "auto":
                raise ValueError(f"{name} is {value!r}; give a number, a function of k, or 'auto'.")
        elif not callable(value) and not value > 0:
            raise ValueError(f"{name} is {value}; it must be positive.")
    if not 0 <= p < 0.5:
        raise ValueError(f"p is {p}; the theory needs 0 <= p < 1/2.")
    if theta_steps < 1:
        raise ValueError(f"theta_steps is {theta_steps}; at least one step of theta is needed.")
    automatic = "auto" in [value for value in named.values() if isinstance(value, str)]
    follows = automatic and update_x is not None
    if update_x is not None and isinstance(alpha, str) and not update_x.finds_length:
        raise ValueError(
            "alpha is 'auto', but an update rule of x has its own scale. Give a number, or distance_over_gradients()."
        )
    rule_x, rule_y, rule_theta = (rule or gradient_descent() for rule in (update_x, update_y, update_theta))

    def constants(tuning: Tuning | Followed | None, k: int) -> tuple[float, float, float, float, float]:
        """Returns alpha, beta, eta, gamma and c_k."""
        if isinstance(c, str):
            assert tuning is not None
            c_k = tuning.c if isinstance(tuning, Followed) else penalty(tuning, k, p)
        else:
            c_k = c(k) if callable(c) else c * (k + 1) ** p
        gamma_k = tuning.gamma if tuning and isinstance(gamma, str) else at(gamma, k)
        chosen = (0.0, 0.0, 0.0)
        if isinstance(tuning, Followed):
            chosen = (1.0, tuning.step, tuning.step)
        elif tuning:
            chosen = sizes(tuning, c_k, gamma_k)
        a, b, e = (own if isinstance(given, str) else at(given, k) for given, own in zip((alpha, beta, eta), chosen))
        return a, b, e, gamma_k, c_k

    def init(problem: Bilevel, x: Tensors, y: Tensors, upper_batch: Any = None, lower_batch: Any = None) -> State:
        theta = [t.detach().clone() for t in y]
        tuning: Tuning | Followed | None = None
        if follows:
            given = [None if isinstance(value, str) else at(value, 0) for value in (c, gamma)]
            tuning = begin(problem, x, y, upper_batch, lower_batch, *given)
        elif automatic:
            tuning = start(problem, x, y, upper_batch, lower_batch)
        return State(theta, 0, rule_x.init(x), rule_y.init(y), rule_theta.init(theta), tuning)

    def at_once(
        problem: Bilevel, x: Tensors, y: Tensors, theta: Tensors, state: State, upper_batch: Any, lower_batch: Any
    ) -> tuple[Tensors, Tensors, State, Info]:
        """The lagged step from one backward pass: F/c + f(y) - f(theta) has d_x, and all but the pull of theta."""
        a, b, e, gamma_k, c_k = constants(state.tuning, state.k)
        found = evaluate_together(problem.together, x, y, theta, upper_batch, lower_batch, c_k)
        d_theta = subtract(scale(subtract(theta, y), 1 / gamma_k), found.by_theta)
        moved, theta_rule = rule_theta.apply(d_theta, e, theta, state.theta_rule)
        new_theta = problem.prox_y(x, moved, e)
        new_x, x_rule = rule_x.apply(found.by_x, a, x, state.x_rule)
        apart = subtract(y, new_theta)
        d_y = add(found.by_y, apart, -1 / gamma_k)
        new_y, y_rule = rule_y.apply(d_y, b, y, state.y_rule)
        norms = {"d_x": norm(found.by_x), "d_y": norm(d_y), "d_theta": norm(d_theta), "y-theta": norm(apart)}
        F, f, f_theta = found.values
        info = Info(F, f, f_theta, c_k, a, b, e, gamma_k, norms, None, None, None)
        tuning = state.tuning
        if isinstance(tuning, Followed):
            batches = (upper_batch, lower_batch)
            tuning = look(tuning, state.k, problem, x, y, found.by_y, (c_k, gamma_k), batches)
        new = State(new_theta, state.k + 1, x_rule, y_rule, theta_rule, tuning)
        return problem.onto_x(new_x), problem.prox_y(x, new_y, b), new, info

    def step(
        problem: Bilevel, x: Tensors, y: Tensors, state: State, upper_batch: Any = None, lower_batch: Any = None
    ) -> tuple[Tensors, Tensors, State, Info]:
        k = state.k
        alpha_k, beta_k, eta_k, gamma_k, c_k = constants(state.tuning, k)
        theta, theta_rule = [t.detach() for t in state.theta], state.theta_rule
        x, y = [t.detach() for t in x], [t.detach() for t in y]
        if order == "lagged" and theta_steps == 1 and problem.g is None and problem.together is not None:
            return at_once(problem, x, y, theta, state, upper_batch, lower_batch)

        # (9); `lagged` takes grad_x f(x, theta) from the evaluation of the first step
        first = evaluate(problem.at_theta, x, theta, lower_batch, order == "lagged", True)
        for i in range(theta_steps):
            inner = first if i == 0 else evaluate(problem.at_theta, x, theta, lower_batch, False, True)
            d_theta = add(inner.grad_y, subtract(theta, y), 1 / gamma_k)
            last_theta = theta
            moved, theta_rule = rule_theta.apply(d_theta, eta_k, theta, theta_rule)
            theta = problem.prox_y(x, moved, eta_k)

        # (10)
        shared = order != "gauss-seidel"  # one evaluation at (x, y) gives both gradients
        upper = evaluate(problem.F, x, y, upper_batch, True, shared)
        lower = evaluate(problem.f, x, y, lower_batch, True, shared)
        at_theta, place = first, state.theta
        if order != "lagged":
            at_theta, place = evaluate(problem.at_theta, x, theta, lower_batch, True, False), theta
        _check_dependence(problem, lower, at_theta)
        phi_y, phi_theta = lower.grad_x, at_theta.grad_x
        if problem.g is not None:
            phi_y = add(phi_y, grad_x_of_g(problem.g, x, y))
            phi_theta = add(phi_theta, grad_x_of_g(problem.g, x, place))
        difference = subtract(phi_y, phi_theta)
        d_x = add(difference, upper.grad_x, 1 / c_k)

        # (11)
        new_x, x_rule = rule_x.apply(d_x, alpha_k, x, state.x_rule)
        new_x = problem.onto_x(new_x)

        # (12), with theta+ a constant
        if shared:
            upper_y, lower_y = upper, lower
        else:
            upper_y = evaluate(problem.F, new_x, y, upper_batch, False, True)
            lower_y = evaluate(problem.f, new_x, y, lower_batch, False, True)
        psi_y = add(lower_y.grad_y, upper_y.grad_y, 1 / c_k)
        apart = subtract(y, theta)
        d_y = add(psi_y, apart, -1 / gamma_k)

        # (13)
        new_y, y_rule = rule_y.apply(d_y, beta_k, y, state.y_rule)
        at_x = x if shared else new_x
        new_y = problem.prox_y(at_x, new_y, beta_k)

        norms = {
            "F_x/c": norm(upper.grad_x) / c_k, "F_y/c": norm(upper_y.grad_y) / c_k,
            "phi_x(y)": norm(phi_y), "phi_x(theta)": norm(phi_theta), "difference": norm(difference),
            "d_x": norm(d_x), "d_y": norm(d_y), "d_theta": norm(d_theta), "y-theta": norm(apart),
        }  # fmt: skip
        tiny = torch.finfo(norms["d_x"].dtype).tiny
        cosine = dot(upper.grad_x, difference) / (norms["F_x/c"] * norms["difference"] * c_k).clamp(min=tiny)
        info = Info(
            upper.value, lower.value, at_theta.value, c_k, alpha_k, beta_k, eta_k, gamma_k, norms, cosine,
            upper.aux, lower.aux,
        )  # fmt: skip
        tuning = state.tuning
        if isinstance(tuning, Followed):
            tuning = look(tuning, k, problem, at_x, y, psi_y, (c_k, gamma_k), (upper_batch, lower_batch))
        new = State(theta, k + 1, x_rule, y_rule, theta_rule, tuning)
        if tuning is None or isinstance(tuning, Followed):
            return new_x, new_y, new, info
        # between the steps at which others look whether the iteration has come to rest
        if new.k < CHECK_EVERY or new.k % CHECK_EVERY == CHECK_EVERY // 2:
            move, theta_move = (x, new_x, d_x), (last_theta, theta, inner.grad_y)
            shorter = steeper(tuning, problem, move, theta_move, y, place, c_k, alpha_k, upper_batch, lower_batch)
            if shorter is not None:
                return x, y, state._replace(k=new.k, tuning=shorter), info
        if (
            isinstance(c, str)
            and new.k % CHECK_EVERY == 0
            and not at_top(tuning, c_k)
            and (
                new.k - tuning.since >= LONGEST
                or settled(x, y, state.theta, new_x, new_y, theta, info, tuning.curvature.phi_xy)
            )
        ):
            tuning = measured_again(tuning, problem, new_x, new_y, upper_batch, lower_batch, new.k)
            near = _near_prox(problem, new_x, new_y, gamma_k, eta_k, 0.1 * float(norms["F_y/c"]), lower_batch)
            new = new._replace(theta=near, theta_rule=rule_theta.init(near), tuning=climb(tuning, new.k, c_k))
        return new_x, new_y, new, info

    def at_penalty(value: float) -> Method:
        return moreau(alpha, beta, eta, gamma, lambda k: value, p, order, theta_steps, update_x, update_y, update_theta)

    return Method(init, step, at_penalty, isinstance(c, str) and not follows)


def _near_prox(
    problem: Bilevel, x: Tensors, y: Tensors, gamma: float, eta: float, tolerance: float, batch: Any
) -> Tensors:
    """Returns theta after steps (9) from y with x and y at rest, until they are short, 50 at most.

    theta may have stayed in a valley that y has left long ago. It must have arrived before x moves again: at theta
    = y the difference in (10) vanishes, and x would be driven by F alone.
    """
    theta = y
    for k in range(50):
        found = evaluate(problem.at_theta, x, theta, batch, False, True)
        moved = add(theta, add(found.grad_y, subtract(theta, y), 1 / gamma), -eta)
        moved = problem.prox_y(x, moved, eta)
        length = float(norm(subtract(moved, theta))) / eta
        theta = moved
        if length <= tolerance and k >= 5:
            break
    return theta


def settled(
    x: Tensors, y: Tensors, theta: Tensors, new_x: Tensors, new_y: Tensors, new_theta: Tensors, info: Info, cross: float
) -> bool:
    """Returns whether the last step moved each of x, y, theta by less than a tenth of what pushes them.

    That is F/c for y and theta, and for x what y - theta can make of it through the cross curvature too.
    """
    size = info.norms
    moved_x = norm(subtract(new_x, x)) / info.alpha
    moved_y = norm(subtract(new_y, y)) / info.beta
    if info.eta is not None:
        moved_y = moved_y + norm(subtract(new_theta, theta)) / info.eta
    calm_x = moved_x <= 0.1 * (size["F_x/c"] + cross * size["y-theta"])
    return bool(calm_x & (moved_y <= 0.1 * size["F_y/c"]))


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
