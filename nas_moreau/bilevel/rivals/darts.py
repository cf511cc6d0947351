"""DARTS in both orders, and three references: two leave x alone, `joint` has no lower level.

Where x moves, it does so first, and y then along a gradient, by default that at the new x: `alternating`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from nas_moreau.bilevel.method import Batches, Info, Method, State, StepSize, at, make_method, penalty_at
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.tensors import (
    Evaluated,
    Tensors,
    add,
    grad_x,
    grad_y,
    norm,
    subtract,
    value_and_grads,
)
from nas_moreau.bilevel.updates import Update, gradient_descent


class Direction(NamedTuple):
    """What a step of x rests on.

    Attributes:
        d_x: The direction of x.
        upper: The evaluation of F.
        norms: Norms of the terms of d_x.
        lower: The evaluation of f at the old x, where y moves along `d_y` and not along grad_y f(x+, y).
        d_y: The direction of y that goes with it.
        c: The penalty in d_y.
    """

    d_x: Tensors
    upper: Evaluated
    norms: dict[str, Tensor]
    lower: Evaluated | None = None
    d_y: Tensors | None = None
    c: float | None = None


def alternating(
    alpha: StepSize,
    beta: StepSize,
    direction: Callable[[Bilevel, Tensors, Tensors, State, Batches], Direction],
    update_x: Update | None = None,
    update_y: Update | None = None,
) -> Method:
    """Returns the method that moves x along `direction`, then y along grad_y phi(x+, y) or the direction's own d_y.

    Args:
        alpha: Step size of x.
        beta: Step size of y.
        direction: (problem, x, y, state, batches) -> `Direction`.
        update_x, update_y: Update rules; default params - step * direction.
    """
    rule_x, rule_y = update_x or gradient_descent(), update_y or gradient_descent()

    def init(problem: Bilevel, x: Tensors, y: Tensors, batches: Batches) -> State:
        return State(x_rule=rule_x.init(x), y_rule=rule_y.init(y))

    def step(
        problem: Bilevel, x: Tensors, y: Tensors, state: State, batches: Batches
    ) -> tuple[Tensors, Tensors, State, Info]:
        a, b = at(alpha, state.k), at(beta, state.k)
        found = direction(problem, x, y, state, batches)
        new_x, x_rule = rule_x.apply(found.d_x, a, x, state.x_rule)
        new_x = problem.onto_x(new_x)
        upper, lower = found.upper, found.lower
        if lower is None:
            lower = value_and_grads(problem.f, new_x, y, batches.lower, wrt="y")
        d_y = lower.grad_y if found.d_y is None else found.d_y
        new_y, y_rule = rule_y.apply(d_y, b, y, state.y_rule)
        new_y = problem.prox_y(new_x, new_y, b)
        norms = found.norms | {"d_x": norm(found.d_x), "d_y": norm(d_y)}
        aux = {"F_aux": upper.aux, "f_aux": lower.aux}
        info = Info(a, b, norms, F=upper.value, f=lower.value, c=found.c, terms={"F_x": upper.grad_x}, **aux)
        return new_x, new_y, State(state.k + 1, x_rule, y_rule), info

    return make_method(init, step)


def darts1(alpha: StepSize, beta: StepSize, update_x: Update | None = None, update_y: Update | None = None) -> Method:
    """Returns first-order DARTS: x along grad_x F(x, y), then y along grad_y f(x+, y) (Liu et al., ICLR 2019, xi = 0).

    Two evaluations a step. It treats y as a constant in F, so it does not follow the hypergradient.

    Args:
        alpha: Step size of x.
        beta: Step size of y.
        update_x, update_y: Update rules; default params - step * direction.
    """

    def direction(problem: Bilevel, x: Tensors, y: Tensors, state: State, batches: Batches) -> Direction:
        found = value_and_grads(problem.F, x, y, batches.upper, wrt="x")
        return Direction(found.grad_x, found, {})

    return alternating(alpha, beta, direction, update_x, update_y)


def darts2(
    alpha: StepSize,
    beta: StepSize,
    radius: float = 0.01,
    update_x: Update | None = None,
    update_y: Update | None = None,
) -> Method:
    """Returns second-order DARTS: x along the gradient of F at weights one step ahead (Liu et al., ICLR 2019, eq. 7-8).

        y' = y - beta (momentum * buffer + grad_y f(x, y) + weight_decay * y)
        v  = grad_y F(x, y'),  R = radius / |v|
        d_x = grad_x F(x, y') - beta [ grad_x f(x, y + R v) - grad_x f(x, y - R v) ] / (2 R)

    Momentum, its buffer and the weight decay are those of `update_y`, where it is a chain with such transforms. Five
    evaluations a step. y +- R v are new tensors: y itself is never perturbed.

    Args:
        alpha: Step size of x.
        beta: Step size of y, and of the step ahead.
        radius: Radius of the central difference.
        update_x, update_y: Update rules; default params - step * direction.
    """
    rule_y = update_y or gradient_descent()

    def direction(problem: Bilevel, x: Tensors, y: Tensors, state: State, batches: Batches) -> Direction:
        xi = at(beta, state.k)
        quiet = problem.at_theta  # a look ahead leaves y's running statistics alone
        ahead = grad_y(quiet, x, y, batches.lower)
        if decay := rule_y.part("weight_decay", state.y_rule):
            ahead = add(ahead, y, decay.factor)
        if (momentum := rule_y.part("momentum", state.y_rule)) and momentum.state:
            ahead = add(ahead, momentum.state, momentum.factor)
        found = value_and_grads(problem.F, x, add(y, ahead, -xi), batches.upper)
        length = radius / (norm(found.grad_y) + 1e-30)
        shift = [length * v for v in found.grad_y]
        plus = grad_x(quiet, x, add(y, shift), batches.lower)
        minus = grad_x(quiet, x, subtract(y, shift), batches.lower)
        correction = [d * (xi / (2 * length)) for d in subtract(plus, minus)]
        d_x = subtract(found.grad_x, correction)
        return Direction(d_x, found, {"F_x": norm(found.grad_x), "correction": norm(correction)})

    return alternating(alpha, beta, direction, update_x, update_y)


def joint(
    alpha: StepSize,
    beta: StepSize,
    c: StepSize = 1.0,
    p: float = 0.0,
    update_x: Update | None = None,
    update_y: Update | None = None,
) -> Method:
    """Returns the reference that is left of `moreau` without the envelope: x follows F alone, y follows F/c_k + f.

    Two evaluations a step, both at the old (x, y). A claim for the envelope is a claim over this method: y is trained
    on both objectives here too, but nothing corrects x's direction for the dependence of y on x. (In architecture
    search: single-level search on both halves of the data, as Li et al., ICLR 2021, compare it.)

    Args:
        alpha: Step size of x.
        beta: Step size of y.
        c, p: The penalty c_k = c (k+1)^p, or c_k itself as a function of k.
        update_x, update_y: Update rules; default params - step * direction.
    """

    def direction(problem: Bilevel, x: Tensors, y: Tensors, state: State, batches: Batches) -> Direction:
        c_k = penalty_at(c, p, state.k)
        upper = value_and_grads(problem.F, x, y, batches.upper)
        lower = value_and_grads(problem.f, x, y, batches.lower, wrt="y")
        return Direction(upper.grad_x, upper, {}, lower, add(lower.grad_y, upper.grad_y, 1 / c_k), c_k)

    return alternating(alpha, beta, direction, update_x, update_y)


def y_alone(beta: StepSize, update_y: Update | None = None, on: str = "f") -> Method:
    """Returns the reference that leaves x where it is and trains y on f, or on F. One evaluation a step.

    Args:
        beta: Step size of y.
        update_y: Update rule; default params - step * direction.
        on: "f" or "F".
    """
    rule = update_y or gradient_descent()

    def init(problem: Bilevel, x: Tensors, y: Tensors, batches: Batches) -> State:
        return State(y_rule=rule.init(y))

    def step(
        problem: Bilevel, x: Tensors, y: Tensors, state: State, batches: Batches
    ) -> tuple[Tensors, Tensors, State, Info]:
        b = at(beta, state.k)
        objective, batch = (problem.f, batches.lower) if on == "f" else (problem.F, batches.upper)
        found = value_and_grads(objective, x, y, batch, wrt="y")
        new_y, y_rule = rule.apply(found.grad_y, b, y, state.y_rule)
        seen = {on: found.value, f"{on}_aux": found.aux}
        info = Info(0.0, b, {"d_y": norm(found.grad_y)}, **seen)
        return x, problem.prox_y(x, new_y, b), State(state.k + 1, y_rule=y_rule), info

    return make_method(init, step)
