"""Bilevel methods for the two problems with networks, by name, with constants that were tuned for them.

The hypergradient of one sample's weight or one kernel is tiny beside that of the network's first layer, so Adam acts
on d_x, in all methods alike, and where a method allows it momentum acts on d_y. `evaluations` counts gradient
evaluations of one step, forward and backward; a product with a Hessian counts as one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from nas_moreau.bilevel import Method, adam, distance_over_gradients, moreau, sgd
from nas_moreau.bilevel.method import Info, StepSize
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.rivals.hypergradient import implicit_cg, neumann, rhg
from nas_moreau.bilevel.rivals.penalties import bome, f2sa, v_pbgd
from nas_moreau.bilevel.tensors import Tensors, norm, value_and_grads
from nas_moreau.bilevel.updates import Update


class Chosen(NamedTuple):
    """make(steps) -> the method for a run of so many steps; and the gradient evaluations that a step of it takes."""

    make: Callable[[int], Method]
    evaluations: int


class Sizes(NamedTuple):
    """Step sizes of a task: of x under Adam; of y and theta under SGD with momentum; of plain inner steps.

    `falls`: whether x's falls to a fiftieth in the course of the run.
    """

    x: float
    y: float
    inner: float
    momentum: float
    falls: bool


CLEANING = Sizes(0.1, 0.01, 0.05, 0.9, False)
FEW_SHOT = Sizes(1e-2, 0.2, 0.5, 0.0, True)
PAPER = {
    "hyper-cleaning": {"alpha": 0.1, "beta": 0.15, "eta": 0.001, "gamma": 100.0, "c": 0.2, "p": 0.25},
    "few-shot": {"alpha": 0.08, "beta": 0.05, "eta": 0.001, "gamma": 100.0, "c": 0.067, "p": 0.08},
}
"""Constants that the paper prints."""


class FrozenState(NamedTuple):
    """Steps done, and the state of y's update rule."""

    k: int
    y_rule: Any


def frozen(beta: float, update_y: Update, upper: bool = False) -> Method:
    """Returns the reference that leaves x alone and trains y on f, or on F if `upper`."""

    def init(problem: Bilevel, x: Tensors, y: Tensors, upper_batch: Any = None, lower_batch: Any = None) -> FrozenState:
        return FrozenState(0, update_y.init(y))

    def step(
        problem: Bilevel, x: Tensors, y: Tensors, state: FrozenState, upper_batch: Any = None, lower_batch: Any = None
    ) -> tuple[Tensors, Tensors, FrozenState, Info]:
        trained, batch = (problem.F, upper_batch) if upper else (problem.f, lower_batch)
        found = value_and_grads(trained, x, y, batch, wrt="y")
        new_y, y_rule = update_y.apply(found.grad_y, beta, y, state.y_rule)
        info = Info(0.0, beta, {"d_y": norm(found.grad_y)}, F=found.value, f=found.value)
        return x, new_y, FrozenState(state.k + 1, y_rule), info

    return Method(init, step)


def falling(first: float, steps: int) -> Callable[[int], float]:
    """Returns k -> a step size that falls on a straight line from `first` to a fiftieth of it after `steps` steps."""
    return lambda k: first * max(0.02, 1 - k / steps)


def _table(task: str, size: Sizes, c: float) -> dict[str, Chosen]:
    """Returns name -> method. `c` is the penalty of those that have one (1/c weighs F)."""
    unrolled = 5

    def alpha(steps: int) -> StepSize:
        return falling(size.x, steps) if size.falls else size.x

    def rule() -> Update:
        return sgd(size.momentum)

    def envelope(order: str) -> Callable[[int], Method]:
        # gamma = 1 keeps theta near y; c is constant, because a growing one would drown F within so few steps
        return lambda steps: moreau(
            alpha(steps), size.y, size.y, 1.0, c, 0.0, order,
            update_x=adam(), update_y=rule(), update_theta=rule(),
        )  # fmt: skip

    def automatic(steps: int) -> Method:
        factor: StepSize | str = falling(1.0, steps) if size.falls else "auto"
        return moreau(factor, order="lagged", update_x=distance_over_gradients(), update_y=rule(), update_theta=rule())

    return {
        "moreau": Chosen(envelope("lagged"), 3),
        "moreau-lagged": Chosen(envelope("lagged"), 3),
        "moreau-jacobi": Chosen(envelope("jacobi"), 4),
        "moreau-gauss-seidel": Chosen(envelope("gauss-seidel"), 6),
        "moreau-auto": Chosen(automatic, 3),
        "moreau-paper": Chosen(lambda steps: moreau(**PAPER[task], update_x=adam()), 6),
        "rhg": Chosen(lambda steps: rhg(alpha(steps), size.inner, 2 * unrolled, update_x=adam()), 4 * unrolled + 1),
        "rhg-truncated": Chosen(
            lambda steps: rhg(alpha(steps), size.inner, 2 * unrolled, truncate=2, update_x=adam()), 2 * unrolled + 3
        ),
        "implicit-cg": Chosen(
            lambda steps: implicit_cg(alpha(steps), size.inner, unrolled, unrolled, update_x=adam()), 2 * unrolled + 3
        ),
        "neumann": Chosen(
            lambda steps: neumann(alpha(steps), size.inner, unrolled, unrolled, update_x=adam()), 2 * unrolled + 2
        ),
        "bome": Chosen(
            lambda steps: bome(alpha(steps), size.y, size.inner, unrolled, update_x=adam(), update_y=rule()),
            unrolled + 3,
        ),
        "v-pbgd": Chosen(
            lambda steps: v_pbgd(alpha(steps), size.y, size.inner, c, update_x=adam(), update_y=rule()), 4
        ),
        "f2sa": Chosen(lambda steps: f2sa(alpha(steps), size.y, size.inner, c, update_x=adam(), update_y=rule()), 6),
        "none": Chosen(lambda steps: frozen(size.y, rule()), 1),
    }


METHODS: dict[str, dict[str, Chosen]] = {
    "hyper-cleaning": {
        **_table("hyper-cleaning", CLEANING, 1.0),
        "validation-only": Chosen(lambda steps: frozen(CLEANING.y, sgd(CLEANING.momentum), upper=True), 1),
    },
    "few-shot": _table("few-shot", FEW_SHOT, 1.0),
}
"""Task -> name -> method. `none` never moves x; `validation-only` uses no training sample."""
