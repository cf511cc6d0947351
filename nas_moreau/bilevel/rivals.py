"""DARTS in both orders, and the table of all rivals under the contract of `contract.Method`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nas_moreau.bilevel.alternating import AlternatingState, alternating
from nas_moreau.bilevel.contract import Method, StepSize, at
from nas_moreau.bilevel.hypergradient import implicit_cg, neumann, rhg
from nas_moreau.bilevel.penalties import bome, f2sa, fixed_penalty, v_pbgd
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.tensors import Tensors, add, evaluate, norm, subtract
from nas_moreau.bilevel.updates import SGDState, Update, gradient_descent


def darts1(alpha: StepSize, beta: StepSize, update_x: Update | None = None, update_y: Update | None = None) -> Method:
    """Returns first-order DARTS: x along grad_x F(x, y), then y along grad_y f(x+, y) (Liu et al., ICLR 2019, xi = 0).

    Two evaluations a step. It takes y for a constant in F, so it follows no hypergradient.

    Args:
        alpha: Step size of x.
        beta: Step size of y.
        update_x, update_y: Update rules; default params - step * direction.
    """
    rule_x, rule_y = update_x or gradient_descent(), update_y or gradient_descent()

    def direction(
        problem: Bilevel, x: Tensors, y: Tensors, state: AlternatingState, upper: Any, lower: Any, k: int
    ) -> Any:
        found = evaluate(problem.F, x, y, upper, True, False)
        return found, found.grad_x, {}

    return alternating(alpha, beta, rule_x, rule_y, direction)


def darts2(
    alpha: StepSize,
    beta: StepSize,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    radius: float = 0.01,
    update_x: Update | None = None,
    update_y: Update | None = None,
) -> Method:
    """Returns second-order DARTS: x along the gradient of F at weights one step ahead (Liu et al., ICLR 2019, eq. 7-8).

        y' = y - beta (momentum * buffer + grad_y f(x, y) + weight_decay * y)
        v  = grad_y F(x, y'),  R = radius / |v|
        d_x = grad_x F(x, y') - beta [ grad_x f(x, y + R v) - grad_x f(x, y - R v) ] / (2 R)

    Five evaluations a step. y +- R v are new tensors: y itself is never perturbed.

    Args:
        alpha: Step size of x.
        beta: Step size of y, of the step ahead too.
        momentum: Of the step ahead; its buffer is that of `update_y` where that rule is `updates.sgd`.
        weight_decay: Of the step ahead.
        radius: Of the central difference.
        update_x, update_y: Update rules; default params - step * direction.
    """
    rule_x, rule_y = update_x or gradient_descent(), update_y or gradient_descent()

    def direction(
        problem: Bilevel, x: Tensors, y: Tensors, state: AlternatingState, upper: Any, lower: Any, k: int
    ) -> Any:
        xi = at(beta, k)
        quiet = problem.at_theta  # a look ahead leaves y's running statistics alone
        ahead = add(evaluate(quiet, x, y, lower, False, True).grad_y, y, weight_decay)
        if momentum and isinstance(state.y_rule, SGDState) and state.y_rule.buffers:
            ahead = add(ahead, state.y_rule.buffers, momentum)
        found = evaluate(problem.F, x, add(y, ahead, -xi), upper, True, True)
        length = radius / (norm(found.grad_y) + 1e-30)
        shift = [length * v for v in found.grad_y]
        plus = evaluate(quiet, x, add(y, shift), lower, True, False).grad_x
        minus = evaluate(quiet, x, subtract(y, shift), lower, True, False).grad_x
        correction = [d * (xi / (2 * length)) for d in subtract(plus, minus)]
        d_x = subtract(found.grad_x, correction)
        return found, d_x, {"F_x": norm(found.grad_x), "correction": norm(correction)}

    return alternating(alpha, beta, rule_x, rule_y, direction)


RIVALS: dict[str, Callable[..., Method]] = {
    "darts1": darts1,
    "darts2": darts2,
    "rhg": rhg,
    "implicit-cg": implicit_cg,
    "neumann": neumann,
    "bome": bome,
    "f2sa": f2sa,
    "v-pbgd": v_pbgd,
    "fixed-penalty": fixed_penalty,
}
"""Name -> function that returns the method. Truncated RHG is `rhg` with `truncate`."""
