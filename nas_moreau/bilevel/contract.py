"""What every bilevel method is, `moreau` and its rivals alike: two functions, and what a step tells of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from nas_moreau.bilevel.automatic import Rule
from nas_moreau.bilevel.problem import Tensors

StepSize = float | Callable[[int], float]


def at(step_size: StepSize, k: int) -> float:
    """Returns a step size that is a number, or a function of the step, at step k."""
    return step_size(k) if callable(step_size) else float(step_size)


class Method(NamedTuple):
    """init(problem, x, y) -> state; step(problem, x, y, state, upper_batch, lower_batch) -> (x, y, state, info).

    at_penalty(c) is the same method at a fixed penalty c, None where there is none. `automatic` is the rule by which
    constants in `state.tuning` are chosen, None where all are given.
    """

    init: Callable[..., Any]
    step: Callable[..., tuple[Tensors, Tensors, Any, Any]]
    at_penalty: Callable[[float], Method] | None = None
    automatic: Rule | None = None


class Info(NamedTuple):
    """What happened in a step; tensors are 0-dim, detached and on the device (nothing here waits for it).

    Attributes:
        alpha, beta: The step sizes of x and y.
        norms: Euclidean norms of those of these that the method has:
            d_x, d_y, d_theta: The directions of x, y and theta.
            F_x_over_c, F_y_over_c: grad_x F / c_k and grad_y F / c_k.
            phi_x_y, phi_x_theta: grad_x phi at y and at theta; difference: of these two.
            distance: y - theta.
            F_x, correction: grad_x F and the second-order term of `darts2`.
        F: F(x, y); None where a method does not look at it.
        f: f(x, y), likewise.
        f_theta: f at theta, on the batch of f (`lagged`: at the old theta).
        c, eta, gamma: The penalty c_k, the step size of theta, and gamma, where the method has them.
        cosine: Of the angle between F_x/c and the difference.
        F_aux, f_aux: What F and f returned beside their values.
    """

    alpha: float
    beta: float
    norms: dict[str, Tensor]
    F: Tensor | None = None
    f: Tensor | None = None
    f_theta: Tensor | None = None
    c: float | None = None
    eta: float | None = None
    gamma: float | None = None
    cosine: Tensor | None = None
    F_aux: Any = None
    f_aux: Any = None
