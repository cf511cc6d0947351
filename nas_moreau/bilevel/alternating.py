"""Methods that move x along some direction and then y along grad_y phi(x+, y): the frame of both orders of DARTS."""

from __future__ import annotations

from typing import Any, NamedTuple

from nas_moreau.bilevel.contract import Info, Method, StepSize, at
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.tensors import Tensors, evaluate, norm
from nas_moreau.bilevel.updates import Update


class AlternatingState(NamedTuple):
    """Steps done and the states of the two update rules."""

    k: int
    x_rule: Any
    y_rule: Any


def alternating(alpha: StepSize, beta: StepSize, rule_x: Update, rule_y: Update, direction: Any) -> Method:
    """Returns the method: x along `direction`, then y along grad_y phi(x+, y).

    direction(problem, x, y, state, upper_batch, lower_batch, k) -> (evaluation of F, d_x, norms).
    """

    def init(
        problem: Bilevel, x: Tensors, y: Tensors, upper_batch: Any = None, lower_batch: Any = None
    ) -> AlternatingState:
        return AlternatingState(0, rule_x.init(x), rule_y.init(y))

    def step(
        problem: Bilevel,
        x: Tensors,
        y: Tensors,
        state: AlternatingState,
        upper_batch: Any = None,
        lower_batch: Any = None,
    ) -> tuple[Tensors, Tensors, AlternatingState, Info]:
        k, a, b = state.k, at(alpha, state.k), at(beta, state.k)
        x, y = [t.detach() for t in x], [t.detach() for t in y]
        upper, d_x, norms = direction(problem, x, y, state, upper_batch, lower_batch, k)
        new_x, x_rule = rule_x.apply(d_x, a, x, state.x_rule)
        new_x = problem.onto_x(new_x)
        lower = evaluate(problem.f, new_x, y, lower_batch, False, True)
        new_y, y_rule = rule_y.apply(lower.grad_y, b, y, state.y_rule)
        new_y = problem.prox_y(new_x, new_y, b)
        norms = norms | {"d_x": norm(d_x), "d_y": norm(lower.grad_y)}
        info = Info(a, b, norms, F=upper.value, f=lower.value, F_aux=upper.aux, f_aux=lower.aux)
        return new_x, new_y, AlternatingState(k + 1, x_rule, y_rule), info

    return Method(init, step)
