"""The step sizes of bilevel methods: from curvatures on small problems, tuned for the tasks on data."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from nas_moreau.bilevel import Method, StepSizes, adam, distance_over_gradients, sgd
from nas_moreau.bilevel.automatic.measured import FIRST_CONVEX, SAFETY, begin
from nas_moreau.bilevel.methods import METHODS, MethodInfo
from nas_moreau.problems.synthetic import Case

INNER_STEPS, TUNED_INNER_STEPS = 10, 5
"""Inner steps on small problems and on data; methods that need the Hessian take as many products with it."""

UNROLLED = ("rhg", "rhg-truncated")
"""Methods that take twice as many inner steps, since they differentiate through them instead of products."""


CLOCK = 100
"""Steps in which the growth (1 + k)^(1/4) of F2SA's penalty advances by one: else it slows x before x has arrived."""


def curvature_step_sizes(case: Case, info: MethodInfo) -> StepSizes:
    """Returns step sizes for a small problem: each .8 over the Lipschitz constant of its direction.

    The methods of the envelope find their constants themselves, from the same curvatures.

    Args:
        case: The problem, its start and the paper's constants.
        info: The method.

    Raises:
        ValueError: The method is that with the paper's constants, and there are none for this problem.
    """
    if "published" in info.needs:
        if not case.paper:
            raise ValueError(f"The paper prints no constants for {case.name}. Use moreau.")
        return StepSizes(**case.paper)
    if "envelope" in info.needs:
        return StepSizes()
    L = begin(case.problem, case.x, case.y).curvature
    f_yy = max(L.f_yy, 1e-12)
    lower = SAFETY / f_yy
    c = FIRST_CONVEX * (L.F / L.phi if L.F > 0 else L.F_slope / max(L.phi_slope, 1e-12))
    if "penalty" in info.needs:
        alpha = SAFETY / (L.F_xx + c * max(L.f_xx, L.phi_xy**2 / f_yy))
        beta = SAFETY / (L.F_yy + c * L.f_yy)
    elif "gradient penalty" in info.needs:
        c = c / f_yy
        alpha = beta = SAFETY / (L.F + c * L.phi**2)
    elif "joint" in info.needs:
        alpha, beta = SAFETY / max(L.F_xx, 1e-12), SAFETY / (L.F_yy / c + f_yy)
    elif "barrier" in info.needs:
        alpha = beta = SAFETY / (L.F + L.phi)
    else:  # the hypergradient, with |dy*/dx| taken as phi_xy / f_yy
        alpha, beta = SAFETY / max(L.F_xx + L.F_yy * (L.phi_xy / f_yy) ** 2, 1e-12), lower
    inner = _inner_steps(info, INNER_STEPS)
    return StepSizes(alpha, beta, lower, c=lambda k: c * (1 + k / CLOCK) ** 0.25, inner_steps=inner)


def _inner_steps(info: MethodInfo, usual: int) -> int:
    if "inner loop" not in info.needs:
        return 1
    return 2 * usual if info.name in UNROLLED else usual


def method_for(name: str, case: Case) -> Method:
    """Returns the method of that name with step sizes for a small problem.

    Args:
        name: A name of the table of methods.
        case: The problem with its curvatures.

    Raises:
        KeyError: There is no such method.
        ValueError: There are no step sizes for it.
    """
    info = METHODS[name]
    return info.build(curvature_step_sizes(case, info))


class Tuned(NamedTuple):
    """Step sizes that were tuned for a task on data, and the constants that the paper prints for it.

    Attributes:
        x: Step size of x under Adam, whose scale does not depend on the method. The hypergradient of one sample's
            weight or one kernel is tiny compared with that of a network's first layer, so Adam acts on d_x in every
            method.
        y: Step size of y, and of theta under the envelope, with momentum.
        inner: Step size of plain gradient steps on the lower level.
        momentum: Momentum of y and theta.
        falls: Whether x's step size falls to a fiftieth over the run.
        paper: The paper's constants.
    """

    x: float
    y: float
    inner: float
    momentum: float
    falls: bool
    paper: dict[str, float]


TUNED = {
    "hyper-cleaning": Tuned(
        0.1, 0.01, 0.05, 0.9, False, {"alpha": 0.1, "beta": 0.15, "eta": 0.001, "gamma": 100.0, "c": 0.2, "p": 0.25}
    ),
    "few-shot": Tuned(
        1e-2, 0.2, 0.5, 0.0, True, {"alpha": 0.08, "beta": 0.05, "eta": 0.001, "gamma": 100.0, "c": 0.067, "p": 0.08}
    ),
}
"""Task -> step sizes; how they were found: docs/hyperparameter_learning.md."""


def tuned_step_sizes(task: str, steps: int, info: MethodInfo) -> StepSizes:
    """Returns the step sizes of a method for a task on data.

    gamma = 1 keeps theta near y; c = 1 does not grow, because F would vanish within so short a run.

    Args:
        task: A key of `TUNED`.
        steps: Length of the run, over which x's step size may fall.
        info: The method.
    """
    tuned = TUNED[task]
    if "published" in info.needs:
        return StepSizes(**tuned.paper, update_x=adam())
    rule = sgd(tuned.momentum)
    if "automatic" in info.needs:
        factor = falling(1.0, steps) if tuned.falls else "auto"
        return StepSizes(factor, update_x=distance_over_gradients(), update_y=rule, update_theta=rule)
    return StepSizes(
        alpha=falling(tuned.x, steps) if tuned.falls else tuned.x,
        beta=tuned.y,
        eta=tuned.y if "envelope" in info.needs else tuned.inner,
        gamma=1.0,
        c=1.0,
        p=0.0,
        inner_steps=_inner_steps(info, TUNED_INNER_STEPS),
        update_x=adam(),
        update_y=rule,
        update_theta=rule,
    )


def falling(first: float, steps: int) -> Callable[[int], float]:
    """Returns k -> a step size that falls on a straight line from `first` to a fiftieth of it after `steps` steps."""
    return lambda k: first * max(0.02, 1 - k / steps)
