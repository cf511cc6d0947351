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
    lagged       (3)  like jacobi, and d_x takes theta instead of theta+, so that (9) and (10) share one evaluation at
                      (x, theta).
                      With minibatches it has an advantage: theta was computed before the batch was drawn on which
                      f(x,y) and f(x,theta) are compared, so the comparison is not biased.

The paper's theory covers gauss-seidel alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas_moreau.bilevel.automatic.measured import MEASURED
from nas_moreau.bilevel.automatic.rule import AutoRule, Sizes
from nas_moreau.bilevel.automatic.tracked import TRACKED
from nas_moreau.bilevel.method import (
    Batches,
    Info,
    Iterate,
    Method,
    State,
    StepSize,
    at,
    make_method,
    movement,
    penalty_at,
)
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.refusals import check_constants
from nas_moreau.bilevel.tensors import (
    AtX,
    Evaluated,
    Tensors,
    add,
    dot,
    grad_x_of_g,
    norm,
    scale,
    subtract,
    value_and_grads,
)
from nas_moreau.bilevel.tensors import grad_y as grad_y_of
from nas_moreau.bilevel.updates import Update, gradient_descent


class Constants(NamedTuple):
    """The constants of one step; c is c_k."""

    alpha: float
    beta: float
    eta: float
    gamma: float
    c: float


class StepRecord(NamedTuple):
    """A step that was taken, for the rule that chooses the constants of the next.

    Attributes:
        before, after: The iterates.
        used: The step's constants.
        batches: On which F and f were evaluated.
        norms: As in `Info`.
        restart: theta -> the state of its update rule at a theta that no step has led to.
        d_x: The direction of x.
        theta_of_x: The theta at which d_x was taken.
        grad_y: Gradient of F/c + f in y, taken at (x_of_y, y).
        x_of_y: x, or in the order gauss-seidel the new x.
        last_theta: theta before the last of its steps (9).
        grad_theta: grad_y f there; None where the step did not compute it on its own.
    """

    before: Iterate
    after: Iterate
    used: Constants
    batches: Batches
    norms: dict[str, Tensor]
    restart: Callable[[Tensors], Any]
    d_x: Tensors
    theta_of_x: Tensors
    grad_y: Tensors
    x_of_y: Tensors
    last_theta: Tensors
    grad_theta: Tensors | None


class Scheme(NamedTuple):
    """How a step is taken: the order, its steps of theta and y, the update rules of x, y and theta."""

    order: str
    theta_steps: int
    lower_steps: int
    x: Update
    y: Update
    theta: Update


def moreau(
    alpha: StepSize | str = "auto",
    beta: StepSize | str = "auto",
    eta: StepSize | str = "auto",
    gamma: StepSize | str = "auto",
    c: StepSize | str = "auto",
    p: float = 0.49,
    order: str = "gauss-seidel",
    theta_steps: int = 1,
    update_x: Update | None = None,
    update_y: Update | None = None,
    update_theta: Update | None = None,
    lower_steps: int = 1,
) -> Method:
    """Returns the Moreau-envelope method.

    With all constants given, a step never waits for the device and works on `meta` tensors. With one of them
    "auto", `init` measures curvatures, and a step reads a few norms back every 10 steps: those of
    `automatic/measured.py` where x moves by its direction, those of `automatic/tracked.py`, meant for networks, where
    `update_x` is given.

    Args:
        alpha: Step size of x: a number, a function of k, or "auto".
        beta: Step size of y, in the same forms.
        eta: Step size of theta, in the same forms.
        gamma: Parameter of the envelope, in the same forms; the theory asks for gamma < 1/(2 rho), rho the weak
            convexity of the lower level in y.
        c: A number for the penalty c_k = c (k+1)^p, or c_k itself as a function of k, or "auto".
        p: 0 <= p < 1/2.
        order: "gauss-seidel", "jacobi" or "lagged".
        theta_steps: Number of steps (9) in one step of the method.
        lower_steps: Number of steps of theta and y for each step of x; all but the last are (9), (12) and (13) at the
            old x. They are cheap where the problem has an `at_x`.
        update_x: Update rule of x; default params - step * direction.
        update_y: Update rule of y; the same default.
        update_theta: Update rule of theta; the same default.

    Raises:
        ValueError: A constant is out of its range.
    """
    constants = {"alpha": alpha, "beta": beta, "eta": eta, "gamma": gamma, "c": c}
    updates = {"update_x": update_x, "update_y": update_y, "update_theta": update_theta}
    check_constants(constants, p, order, min(theta_steps, lower_steps), updates)
    rule: AutoRule | None = None
    if any(isinstance(constant, str) for constant in constants.values()):
        rule = MEASURED if update_x is None else TRACKED
    scheme = Scheme(order, theta_steps, lower_steps, *(given or gradient_descent() for given in updates.values()))

    def init(problem: Bilevel, x: Tensors, y: Tensors, batches: Batches) -> State:
        theta = [t.clone() for t in y]
        tuning = None
        if rule is not None:
            given = [None if isinstance(constant, str) else at(constant, 0) for constant in (c, gamma)]
            tuning = rule.begin(problem, x, y, batches, *given)
        return State(0, scheme.x.init(x), scheme.y.init(y), theta, scheme.theta.init(theta), tuning)

    def constants_at(k: int, tuning: Any) -> Constants:
        if isinstance(c, str):
            assert rule is not None
            c_k = rule.penalty(tuning, k, p)
        else:
            c_k = penalty_at(c, p, k)
        gamma_k = tuning.gamma if isinstance(gamma, str) else at(gamma, k)
        found = Sizes(None, 0.0, 0.0) if rule is None else rule.sizes(tuning, c_k, gamma_k)
        # without an alpha x's rule finds its length, and takes a factor of it
        chosen = (1.0 if found.alpha is None else found.alpha, found.beta, found.eta)
        a, b, e = (own if isinstance(given, str) else at(given, k) for given, own in zip((alpha, beta, eta), chosen))
        return Constants(a, b, e, gamma_k, c_k)

    def step(
        problem: Bilevel, x: Tensors, y: Tensors, state: State, batches: Batches
    ) -> tuple[Tensors, Tensors, State, Info]:
        before = Iterate(x, y, state._replace(theta=[t.detach() for t in state.theta]))
        # measured.py needs grad_y f(x, theta), which the joint backward pass does not give
        shares = order == "lagged" and theta_steps == 1 and problem.g is None and rule is not MEASURED
        take = _jointly if shares and problem.at_x is not None else _separately
        record, info = take(scheme, problem, before, constants_at(state.k, state.tuning), batches)
        if rule is None:
            return *record.after, info
        after = rule.after(problem, record)
        return *after, info._replace(c_last=rule.last_penalty(after.state.tuning))

    def restart(state: State, y: Tensors) -> State:
        tuning = state.tuning if rule is None or isinstance(c, str) else rule.hold(state.tuning)
        return state._replace(theta=[t.detach().clone() for t in y], tuning=tuning)

    def at_penalty(fixed: float) -> Method:
        return moreau(
            alpha, beta, eta, gamma, lambda k: fixed, p, order, theta_steps, lower_steps=lower_steps, **updates
        )

    def explain(state: State) -> str:
        assert rule is not None
        return rule.explain(state.tuning)

    return make_method(
        init,
        step,
        residual=_relative_movement,
        restart=restart,
        at_penalty=at_penalty,
        explain=None if rule is None else explain,
    )


def _relative_movement(info: Info, before: Iterate, after: Iterate) -> Tensor:
    """Returns (c_k (|dx|/alpha + |dy|/beta) + |dtheta|/eta) / (1 + |grad F|), the latter where the norms are known."""
    assert info.c is not None and info.eta is not None
    total = info.c * movement(info._replace(eta=None), before, after)
    total = total + norm(subtract(after.state.theta, before.state.theta)) / info.eta
    if "F_y_over_c" in info.norms:
        total = total / (1 + info.c * (info.norms["F_x_over_c"] + info.norms["F_y_over_c"]))
    return total


def _at_fixed_x(
    scheme: Scheme,
    problem: Bilevel,
    begin: Iterate,
    used: Constants,
    grad_f: Callable[[Tensors], Tensors],
    grad_penalised: Callable[[Tensors], Tensors],
) -> Iterate:
    """Takes the steps of theta and y that come before the step of x: (9), (12) and (13)."""
    x, y, state = begin
    theta, theta_rule, y_rule = state.theta, state.theta_rule, state.y_rule
    for _ in range(1, scheme.lower_steps):
        d_theta = add(grad_f(theta), subtract(theta, y), 1 / used.gamma)
        moved, theta_rule = scheme.theta.apply(d_theta, used.eta, theta, theta_rule)
        theta = problem.prox_y(x, moved, used.eta)
        d_y = add(grad_penalised(y), subtract(y, theta), -1 / used.gamma)
        moved, y_rule = scheme.y.apply(d_y, used.beta, y, y_rule)
        y = problem.prox_y(x, moved, used.beta)
    return Iterate(x, y, state._replace(theta=theta, theta_rule=theta_rule, y_rule=y_rule))


def _separately(
    scheme: Scheme, problem: Bilevel, before: Iterate, used: Constants, batches: Batches
) -> tuple[StepRecord, Info]:
    """Takes a step by separate evaluations of F and f."""

    x = before.x

    def grad_f(theta: Tensors) -> Tensors:
        return grad_y_of(problem.at_theta, x, theta, batches.lower)

    def grad_penalised(y: Tensors) -> Tensors:
        by_F = grad_y_of(problem.F, x, y, batches.upper)
        return add(grad_y_of(problem.f, x, y, batches.lower), by_F, 1 / used.c)

    before = _at_fixed_x(scheme, problem, before, used, grad_f, grad_penalised)
    _, y, state = before
    order, theta, theta_rule = scheme.order, state.theta, state.theta_rule

    # (9); `lagged` takes grad_x f(x, theta) from the evaluation of the first step
    first = value_and_grads(problem.at_theta, x, theta, batches.lower, wrt="xy" if order == "lagged" else "y")
    for i in range(scheme.theta_steps):
        inner = first if i == 0 else value_and_grads(problem.at_theta, x, theta, batches.lower, wrt="y")
        d_theta = add(inner.grad_y, subtract(theta, y), 1 / used.gamma)
        last_theta = theta
        moved, theta_rule = scheme.theta.apply(d_theta, used.eta, theta, theta_rule)
        theta = problem.prox_y(x, moved, used.eta)

    # (10)
    shared = order != "gauss-seidel"  # one evaluation at (x, y) gives both gradients
    F = value_and_grads(problem.F, x, y, batches.upper, wrt="xy" if shared else "x")
    f = value_and_grads(problem.f, x, y, batches.lower, wrt="xy" if shared else "x")
    at_theta, place = first, state.theta
    if order != "lagged":
        at_theta, place = value_and_grads(problem.at_theta, x, theta, batches.lower, wrt="x"), theta
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
        F_y = value_and_grads(problem.F, new_x, y, batches.upper, wrt="y")
        f_y = value_and_grads(problem.f, new_x, y, batches.lower, wrt="y")
    grad_y = add(f_y.grad_y, F_y.grad_y, 1 / used.c)
    apart = subtract(y, theta)
    d_y = add(grad_y, apart, -1 / used.gamma)

    # (13)
    new_y, y_rule = scheme.y.apply(d_y, used.beta, y, state.y_rule)
    new_y = problem.prox_y(at_x, new_y, used.beta)

    norms = {
        "F_x_over_c": norm(F.grad_x) / used.c,
        "F_y_over_c": norm(F_y.grad_y) / used.c,
        "phi_x_y": norm(phi_y),
        "phi_x_theta": norm(phi_theta),
        "difference": norm(difference),
        "d_x": norm(d_x),
        "d_y": norm(d_y),
        "d_theta": norm(d_theta),
        "distance": norm(apart),
    }
    tiny = torch.finfo(norms["d_x"].dtype).tiny
    cosine = dot(F.grad_x, difference) / (norms["F_x_over_c"] * norms["difference"] * used.c).clamp(min=tiny)
    record = StepRecord(
        before=before,
        after=Iterate(new_x, new_y, State(state.k + 1, x_rule, y_rule, theta, theta_rule, state.tuning)),
        used=used,
        batches=batches,
        norms=norms,
        restart=scheme.theta.init,
        d_x=d_x,
        theta_of_x=place,
        grad_y=grad_y,
        x_of_y=at_x,
        last_theta=last_theta,
        grad_theta=inner.grad_y,
    )
    info = _info(used, norms, (F.value, f.value, at_theta.value))
    terms = {"F_x": F.grad_x, "difference": difference}
    return record, info._replace(cosine=cosine, F_aux=F.aux, f_aux=f.aux, terms=terms)


def _jointly(
    scheme: Scheme, problem: Bilevel, before: Iterate, used: Constants, batches: Batches
) -> tuple[StepRecord, Info]:
    """Takes a lagged step by one backward pass: F/c + f(y) - f(theta) has d_x, and all but the pull of theta."""
    here = AtX(problem.at_x, before.x, batches.upper, batches.lower)
    before = _at_fixed_x(scheme, problem, before, used, here.grad_f, lambda y: here.grad_penalised(y, used.c))
    x, y, state = before
    theta = state.theta
    found = here.pieces(y, theta, used.c)
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
    record = StepRecord(
        before=before,
        after=Iterate(new_x, new_y, State(state.k + 1, x_rule, y_rule, new_theta, theta_rule, state.tuning)),
        used=used,
        batches=batches,
        norms=norms,
        restart=scheme.theta.init,
        d_x=found.by_x,
        theta_of_x=theta,
        grad_y=found.by_y,
        x_of_y=x,
        last_theta=theta,
        grad_theta=None,
    )
    return record, _info(used, norms, found.values)


def _info(used: Constants, norms: dict[str, Tensor], values: tuple[Tensor, Tensor, Tensor]) -> Info:
    """Returns what happened; values are those of F, f and f at theta."""
    F, f, f_theta = values
    return Info(used.alpha, used.beta, norms, F=F, f=f, f_theta=f_theta, c=used.c, eta=used.eta, gamma=used.gamma)


def _check_dependence(problem: Bilevel, at_y: Evaluated, at_theta: Evaluated) -> None:
    """Raises ValueError where only one of the two evaluations uses x, which would silently drop a term of (10)."""
    if at_y.uses_x != at_theta.uses_x:
        here, there = ("y", "theta") if at_y.uses_x else ("theta", "y")
        raise ValueError(
            f"f depends on x at {here} but not at {there}: x was probably copied into a module or detached. "
            "Let both evaluations use the tensors they are given as x."
        )
    if not at_y.uses_x and problem.g is None:
        raise ValueError(
            "The lower level does not depend on x: this is not a bilevel problem. Check that f uses the x it is given."
        )
