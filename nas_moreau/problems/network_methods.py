"""Bilevel methods for the two problems with networks, by name, with constants that were tuned for them.

The hypergradient of one sample's weight or one kernel is tiny beside that of the network's first layer, so Adam acts
on d_x, in all methods alike, and where a method allows it momentum acts on d_y. `evaluations` counts gradient
evaluations of one step, forward and backward; a product with a Hessian counts as one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from nas_moreau.bilevel import Method, adam, distance_over_gradients, moreau, sgd
from nas_moreau.bilevel.hypergradient import implicit_cg, neumann, rhg
from nas_moreau.bilevel.method import Info
from nas_moreau.bilevel.penalties import bome, f2sa, v_pbgd
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.tensors import Tensors, evaluate, norm
from nas_moreau.bilevel.updates import Update


class Chosen(NamedTuple):
    """A method and the gradient evaluations that a step of it takes."""

    method: Method
    evaluations: int


class Sizes(NamedTuple):
    """Step sizes of a task: of x under Adam; of y and theta under SGD with momentum; of plain inner steps."""

    x: float
    y: float
    inner: float
    momentum: float


CLEANING = Sizes(0.1, 0.01, 0.05, 0.9)
FEW_SHOT = Sizes(3e-3, 0.2, 0.5, 0.0)
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
        found = evaluate(trained, x, y, batch, False, True)
        new_y, y_rule = update_y.apply(found.grad_y, beta, y, state.y_rule)
        info = Info(
            found.value, found.value, None, None, 0.0, beta, None, None, {"d_y": norm(found.grad_y)}, None, None, None
        )
        return x, new_y, FrozenState(state.k + 1, y_rule), info

    return Method(init, step)


def _moreau(size: Sizes, c: float, order: str, evaluations: int) -> Chosen:
    """gamma = 1 keeps theta near y; c is constant, because a growing one would drown F within so few steps."""
    return Chosen(
        moreau(
            size.x, size.y, size.y, 1.0, c, 0.0, order,
            update_x=adam(), update_y=sgd(size.momentum), update_theta=sgd(size.momentum),
        ),
        evaluations,
    )  # fmt: skip


def _table(task: str, size: Sizes, c: float) -> dict[str, Callable[[], Chosen]]:
    """Returns name -> function that makes the method. `c` is the penalty of those that have one (1/c weighs F)."""
    unrolled = 5

    def rule() -> Update:
        return sgd(size.momentum)

    return {
        "moreau": lambda: _moreau(size, c, "lagged", 3),
        "moreau-jacobi": lambda: _moreau(size, c, "jacobi", 4),
        "moreau-gauss-seidel": lambda: _moreau(size, c, "gauss-seidel", 6),
        "moreau-auto": lambda: Chosen(
            moreau(order="lagged", update_x=distance_over_gradients(), update_y=rule(), update_theta=rule()), 3
        ),
        "moreau-paper": lambda: Chosen(moreau(**PAPER[task], update_x=adam()), 6),
        "rhg": lambda: Chosen(rhg(size.x, size.inner, 2 * unrolled, update_x=adam()), 4 * unrolled + 1),
        "rhg-truncated": lambda: Chosen(
            rhg(size.x, size.inner, 2 * unrolled, truncate=2, update_x=adam()), 2 * unrolled + 3
        ),
        "implicit-cg": lambda: Chosen(
            implicit_cg(size.x, size.inner, unrolled, unrolled, update_x=adam()), 2 * unrolled + 3
        ),
        "neumann": lambda: Chosen(neumann(size.x, size.inner, unrolled, unrolled, update_x=adam()), 2 * unrolled + 2),
        "bome": lambda: Chosen(
            bome(size.x, size.y, size.inner, unrolled, update_x=adam(), update_y=rule()), unrolled + 3
        ),
        "v-pbgd": lambda: Chosen(v_pbgd(size.x, size.y, size.inner, c, update_x=adam(), update_y=rule()), 4),
        "f2sa": lambda: Chosen(f2sa(size.x, size.y, size.inner, c, update_x=adam(), update_y=rule()), 6),
        "none": lambda: Chosen(frozen(size.y, rule()), 1),
    }


METHODS: dict[str, dict[str, Callable[[], Chosen]]] = {
    "hyper-cleaning": {
        **_table("hyper-cleaning", CLEANING, 1.0),
        "validation-only": lambda: Chosen(frozen(CLEANING.y, sgd(CLEANING.momentum), upper=True), 1),
    },
    "few-shot": _table("few-shot", FEW_SHOT, 1.0),
}
"""Task -> name -> function that makes the method. `none` never moves x; `validation-only` uses no training sample."""
