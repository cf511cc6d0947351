"""What a bilevel method is: two functions, `init` and `step`, and what a step reports.

`moreau` and its rivals are `Method`s; so is whatever a user's function returns that is registered in `methods.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from nas_moreau.bilevel.problem import Bilevel, Tensors
from nas_moreau.bilevel.tensors import norm, subtract
from nas_moreau.bilevel.updates import Update

StepSize = float | Callable[[int], float]
"""A number, or a function of the step k. The function may return a 0-dim tensor on the device (`held_sizes`)."""


def at(step_size: StepSize, k: int) -> float:
    """Returns a step size at step k."""
    return step_size(k) if callable(step_size) else float(step_size)


def penalty_at(c: StepSize, p: float, k: int) -> float:
    """Returns the penalty of step k: c (k+1)^p, or c_k itself where it is given as a function of k."""
    return c(k) if callable(c) else c * (k + 1) ** p


class StepSizes(NamedTuple):
    """Everything about a method that depends on the problem; each context (a task, a search) fills it.

    Step sizes are numbers, functions of the step k, or "auto" for the methods that can find them.

    Attributes:
        alpha: Step size of x, under `update_x`.
        beta: Step size of y, under `update_y`.
        eta: Step size of theta under `update_theta` for the methods of `moreau`; for others that of the plain gradient
            steps on the lower level.
        gamma: Parameter of the Moreau envelope.
        c: The penalty c_k = c (k+1)^p, or c_k itself as a function of k.
        p: Its exponent, 0 <= p < 1/2.
        inner_steps: Gradient steps on the lower level in one step of a method that has an inner loop.
        lower_steps: Steps of theta and y for each step of x, for the methods of `moreau`.
        update_x, update_y, update_theta: Update rules; None for params - step * direction.
    """

    alpha: StepSize | str = "auto"
    beta: StepSize | str = "auto"
    eta: StepSize | str = "auto"
    gamma: StepSize | str = "auto"
    c: StepSize | str = "auto"
    p: float = 0.49
    inner_steps: int = 1
    update_x: Update | None = None
    update_y: Update | None = None
    update_theta: Update | None = None
    lower_steps: int = 1


class Batches(NamedTuple):
    """What F and f are evaluated on in a step."""

    upper: Any = None
    lower: Any = None


NO_BATCHES = Batches()


class State(NamedTuple):
    """What a step of a method of this package passes to the next.

    Attributes:
        k: Number of steps done.
        x_rule, y_rule: States of the update rules of x and y.
        theta: The second copy of y, for methods that have one.
        theta_rule: State of theta's update rule.
        tuning: Automatic constants and what they are derived from; None if all constants are given.
    """

    k: int = 0
    x_rule: Any = ()
    y_rule: Any = ()
    theta: Sequence[Tensor] = ()
    theta_rule: Any = ()
    tuning: Any = None


class Iterate(NamedTuple):
    """A point between two steps."""

    x: Tensors
    y: Tensors
    state: Any


class Info(NamedTuple):
    """What happened in a step; tensors are 0-dim, detached and on the device (nothing here waits for it).

    Attributes:
        alpha, beta: The step sizes of x and y.
        norms: Euclidean norms by name; a method reports those that it has. The names are columns of metrics.csv:
            d_x, d_y, d_theta: the directions of x, y and theta
            F_x_over_c, F_y_over_c: grad_x F / c_k and grad_y F / c_k
            phi_x_y, phi_x_theta: grad_x phi at y and at theta
            difference: of the two
            distance: y - theta
            F_x, correction: grad_x F and the second-order term of `darts2`
        F: F(x, y); None for a method that does not evaluate it.
        f: f(x, y); None for a method that does not evaluate it.
        f_theta: f at theta, on the batch of f (order "lagged": at the previous theta).
        c: The penalty c_k; None for methods without one in `Info`'s sense, that is F/c_k + (f - v).
        c_last: The value up to which an automatic c still climbs; None if it does not climb.
        eta, gamma: The step size of theta and gamma, for methods that have them.
        cosine: Cosine of the angle between F_x_over_c and the difference.
        F_aux, f_aux: What F and f returned in addition to their values.
        terms: What d_x is made of, by name, each like x: F_x (grad_x F) and difference; empty where a method does not
            have them apart.
    """

    alpha: float
    beta: float
    norms: dict[str, Tensor]
    F: Tensor | None = None
    f: Tensor | None = None
    f_theta: Tensor | None = None
    c: float | None = None
    c_last: float | None = None
    eta: float | None = None
    gamma: float | None = None
    cosine: Tensor | None = None
    F_aux: Any = None
    f_aux: Any = None
    terms: Mapping[str, Tensors] = MappingProxyType({})

    @property
    def climbs(self) -> bool:
        """Whether an automatic c has not reached its last value yet."""
        return self.c_last is not None and self.c is not None and self.c < self.c_last


def movement(info: Info, before: Iterate, after: Iterate) -> Tensor:
    """Returns |dx|/alpha + |dy|/beta, and |dtheta|/eta where the method has an eta: how far a step moved."""
    total = norm(subtract(after.y, before.y)) / info.beta
    if info.alpha:
        total = norm(subtract(after.x, before.x)) / info.alpha + total
    if info.eta:
        total = total + norm(subtract(list(after.state.theta), list(before.state.theta))) / info.eta
    return total


def begin_theta(state: Any, y: Tensors) -> Any:
    """Returns the state with theta at y, for methods that have a theta."""
    return state._replace(theta=[t.detach().clone() for t in y]) if getattr(state, "theta", ()) else state


class Method(NamedTuple):
    """A bilevel method, as functions.

    Attributes:
        init: (problem, x, y, upper_batch=None, lower_batch=None) -> state.
        step: (problem, x, y, state, upper_batch=None, lower_batch=None) -> (x, y, state, info). Inputs are never
            modified, results are detached.
        residual: (info, iterate before a step, iterate after it) -> what a stopping rule compares with its tolerance,
            a 0-dim tensor.
        restart: (state, y) -> the state to continue with at another y, or for another lower level: theta begins at y,
            x's update rule continues.
        at_penalty: c -> the same method at a fixed penalty c; None for methods without one.
        explain: state -> a sentence on the constants that were chosen; None if all are given.
    """

    init: Callable[..., Any]
    step: Callable[..., tuple[Tensors, Tensors, Any, Info]]
    residual: Callable[[Info, Iterate, Iterate], Tensor] = movement
    restart: Callable[[Any, Tensors], Any] = begin_theta
    at_penalty: Callable[[float], Method] | None = None
    explain: Callable[[Any], str] | None = None


def make_method(
    init: Callable[[Bilevel, Tensors, Tensors, Batches], Any],
    step: Callable[[Bilevel, Tensors, Tensors, Any, Batches], tuple[Tensors, Tensors, Any, Info]],
    **functions: Any,
) -> Method:
    """Returns the method of an `init` and a `step` that get detached tensors and both batches in one tuple.

    Args:
        init: (problem, x, y, batches) -> state.
        step: (problem, x, y, state, batches) -> (x, y, state, info).
        **functions: The other fields of `Method`.
    """

    def begin(problem: Bilevel, x: Tensors, y: Tensors, upper_batch: Any = None, lower_batch: Any = None) -> Any:
        return init(problem, _detached(x), _detached(y), Batches(upper_batch, lower_batch))

    def advance(
        problem: Bilevel, x: Tensors, y: Tensors, state: Any, upper_batch: Any = None, lower_batch: Any = None
    ) -> tuple[Tensors, Tensors, Any, Info]:
        return step(problem, _detached(x), _detached(y), state, Batches(upper_batch, lower_batch))

    return Method(begin, advance, **functions)


def _detached(tensors: Sequence[Tensor]) -> Tensors:
    return [t.detach() for t in tensors]
