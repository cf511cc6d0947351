"""Constants that are "auto": the form of the rules that choose them (step_sizes.py and following.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from nas_moreau.bilevel.problem import Bilevel, Tensors


class State(NamedTuple):
    """What a step of `moreau` hands to the next.

    Attributes:
        theta: The second copy of y.
        k: Steps done.
        x_rule, y_rule, theta_rule: States of the update rules.
        tuning: What the rule for automatic constants knows; None where all are given.
    """

    theta: Tensors
    k: int
    x_rule: Any
    y_rule: Any
    theta_rule: Any
    tuning: Any = None


class Constants(NamedTuple):
    """The five of one step; c is c_k."""

    alpha: float
    beta: float
    eta: float
    gamma: float
    c: float


class Taken(NamedTuple):
    """A step of `moreau`, for the rule that chooses the constants of the next.

    Attributes:
        x, y, state: Before it.
        new_x, new_y, new_state: After it.
        used: Its constants.
        batches: Of F and of f.
        norms: Of `Info`.
        restart: theta -> the state of its update rule at a theta that no step has led to.
        d_x: The direction of x.
        theta_of_x: The theta at which d_x was taken.
        grad_y: Gradient of F/c + f in y, taken at (x_of_y, y).
        x_of_y: x, or after a step of Gauss and Seidel new_x.
        last_theta: theta before the last of its steps (9).
        grad_theta: grad_y f there; None where the step did not find it by itself.
    """

    x: Tensors
    y: Tensors
    state: State
    new_x: Tensors
    new_y: Tensors
    new_state: State
    used: Constants
    batches: tuple[Any, Any]
    norms: dict[str, Tensor]
    restart: Callable[[Tensors], Any]
    d_x: Tensors
    theta_of_x: Tensors
    grad_y: Tensors
    x_of_y: Tensors
    last_theta: Tensors
    grad_theta: Tensors | None


class Rule(NamedTuple):
    """How automatic constants are chosen; `tuning` is what the rule knows, with `gamma` among it.

    Attributes:
        begin: (problem, x, y, upper_batch, lower_batch, c, gamma) -> tuning; None for a c or gamma that is not given.
        penalty: (tuning, k, p) -> c_k where c is automatic.
        sizes: (tuning, c_k, gamma) -> alpha, beta and eta.
        after: (problem, step taken) -> x, y and state to go on from, mostly those that the step led to.
        last_penalty: tuning -> the c up to which an automatic c climbs; None where it does not climb.
        hold: tuning -> the tuning under which c does not climb.
        explain: tuning -> what was chosen, in words.
    """

    begin: Callable[[Bilevel, Tensors, Tensors, Any, Any, float | None, float | None], Any]
    penalty: Callable[[Any, int, float], float]
    sizes: Callable[[Any, float, float], tuple[float, float, float]]
    after: Callable[[Bilevel, Taken], tuple[Tensors, Tensors, State]]
    last_penalty: Callable[[Any], float | None]
    hold: Callable[[Any], Any]
    explain: Callable[[Any], str]
