"""Automatic constants for networks: y's curvature is followed, where small problems have it measured all over.

With an update rule of its own for x (Adam) the rules of step_sizes.py have nothing to stand on: alpha is no longer in
units of d_x, the iteration never "settles" on minibatches, so c cannot climb, and the curvatures of a network far from
the way say nothing about the way. What is left to be found is how long the steps of y and theta may be:

    beta = eta in [1, 2] / (L + 1/gamma),    L = the greatest eigenvalue of F_yy/c + f_yy at the present (x, y)

The step begins at the lower end of that range, and moves only as far as to stay in it. Were it 1/L at all times it
would run away to zero on networks: their curvature grows until it is about 2/step and stays there (Cohen et al., ICLR
2021), so a shorter step is answered by a greater curvature.

L by power iteration on secants of the gradient in y, six of them at the start. Then, every ten steps and at each of the
first ten, one more on the step's own batch, from the direction found before; it costs a gradient of F and of f in y. A
lesser value is believed by and by, a tenth less at each look and not in the first ten steps, a greater one at once.

alpha is 1 for a rule that finds the length of its steps (`updates.distance_over_gradients`); other rules need it as a
number. c and gamma are no step sizes and are not found: c is 1 unless given, for F and f that are losses of one kind
and weigh alike; it does not grow, since within the few thousand steps of a network F would drown. gamma is 1, or 10/L
where that is more: the pull between y and theta turns their two directions about each other, which momentum bears only
while it is small beside the curvature.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from nas_moreau.bilevel.automatic import Rule, State, Taken
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.tensors import Tensors, add, evaluate, norm, random_like, scale, subtract

ITERATIONS = 6
"""Of power iteration at the start."""

LOOK_EVERY = 10
"""Steps between two looks at the curvature, after the first so many."""

FALL = 0.9
"""What is left of the curvature in use, at least, after a look that found less."""

SHORT, LONG = 1.0, 2.0
"""Bounds of a step times its curvature; descent with a step above the second diverges on a quadratic."""

C, GAMMA, ENVELOPE = 1.0, 1.0, 10.0
"""c, and the two bounds from below of gamma, the second in units of 1/L, where they are not given."""


class Followed(NamedTuple):
    """The step of y and theta, the curvature of F/c + f in y, the direction it was found in, c and gamma."""

    step: float
    curvature: float
    along: Tensors
    c: float
    gamma: float


def begin(
    problem: Bilevel, x: Tensors, y: Tensors, upper: Any, lower: Any, c: float | None, gamma: float | None
) -> Followed:
    """Returns the constants at the start; None stands for a c or gamma that is not given."""
    c = C if c is None else c
    drawn = random_like(y, torch.Generator(device="cpu").manual_seed(0))
    along, curvature = scale(drawn, 1 / float(norm(drawn))), 0.0
    here = _gradient(problem, x, y, c, (upper, lower))
    if not math.isfinite(float(norm(here))):
        raise ValueError("A gradient of F or f is not finite at the start. Start elsewhere, or mend F and f.")
    h = _length(y)
    for _ in range(ITERATIONS):
        bent = scale(subtract(_gradient(problem, x, add(y, along, h), c, (upper, lower)), here), 1 / h)
        curvature = float(norm(bent))
        if not 0 < curvature < math.inf:
            raise ValueError(
                "No curvature in y was found at the start, so the step sizes of y and theta cannot be chosen. "
                "Give beta and eta."
            )
        along = scale(bent, 1 / curvature)
    gamma = max(GAMMA, ENVELOPE / curvature) if gamma is None else gamma
    return Followed(SHORT / (curvature + 1 / gamma), curvature, along, c, gamma)


def sizes(followed: Followed, c_k: float, gamma: float) -> tuple[float, float, float]:
    """Returns (alpha, beta, eta); alpha is a factor of the length that x's rule finds."""
    return 1.0, followed.step, followed.step


def look(
    followed: Followed,
    k: int,
    problem: Bilevel,
    x: Tensors,
    y: Tensors,
    grad_y: Tensors,
    constants: tuple[float, float],
    batches: tuple[Any, Any],
) -> Followed:
    """Returns the constants after step k, with the curvature at (x, y) where it is time to look.

    Args:
        followed: What is in use.
        k: Steps done before.
        problem: F and f.
        x, y: Where the step began.
        grad_y: Gradient of F/c + f there.
        constants: c and gamma.
        batches: The step's, of F and f.
    """
    early = k < LOOK_EVERY
    if not early and k % LOOK_EVERY != LOOK_EVERY // 2:
        return followed
    c, gamma = constants
    h = _length(y)
    moved = add(y, followed.along, h)
    bent = scale(subtract(_gradient(problem, x, moved, c, batches), grad_y), 1 / h)
    value = float(norm(bent))
    if not 0 < value < math.inf:
        return followed
    curvature = max(value, followed.curvature * (1 if early else FALL))
    bend = curvature + 1 / gamma
    step = min(max(followed.step, SHORT / bend), LONG / bend)
    return followed._replace(step=step, curvature=curvature, along=scale(bent, 1 / value))


def after(problem: Bilevel, taken: Taken) -> tuple[Tensors, Tensors, State]:
    """Returns what the step led to; where it is time, the curvature is looked at where the step began."""
    used, before = taken.used, taken.state
    constants = (used.c, used.gamma)
    followed = look(before.tuning, before.k, problem, taken.x_of_y, taken.y, taken.grad_y, constants, taken.batches)
    return taken.new_x, taken.new_y, taken.new_state._replace(tuning=followed)


def explain(followed: Followed) -> str:
    """Returns in words what was chosen."""
    return (
        f"step {followed.step:.3g} of y and theta, curvature of F/c + f in y {followed.curvature:.3g} where the "
        f"iteration is; c {followed.c:.3g} and gamma {followed.gamma:.3g}"
    )


def _length(y: Tensors) -> float:
    """Returns h of the secants, the fourth root of the precision so that noise in single precision stays small."""
    eps = max(torch.finfo(t.dtype).eps for t in y)
    return eps**0.25 * (0.1 + float(norm(y)) / math.sqrt(sum(t.numel() for t in y)))


def _gradient(problem: Bilevel, x: Tensors, y: Tensors, c: float, batches: tuple[Any, Any]) -> Tensors:
    """Returns the gradient of F/c + f in y."""
    upper, lower = (
        evaluate(smooth, x, y, batch, False, True).grad_y for smooth, batch in zip((problem.F, problem.f), batches)
    )
    return add(lower, upper, 1 / c)


FOLLOWED = Rule(
    begin=begin,
    penalty=lambda followed, k, p: followed.c,
    sizes=sizes,
    after=after,
    last_penalty=lambda followed: None,
    hold=lambda followed: followed,
    explain=explain,
)
"""The rule of this file."""
