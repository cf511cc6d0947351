"""Automatic constants for networks: the curvature in y is tracked along the iteration.

With an update rule for x (Adam) the rules of measured.py do not apply: alpha is no longer in units of d_x, the
iteration never settles on minibatches, so c cannot climb, and curvatures far from the iterates of a network say nothing
about those near them. What remains to be found is the length of the steps of y and theta:

    beta = eta in [1, 2] / (L + 1/gamma),    L = the largest eigenvalue of F_yy/c + f_yy at the present (x, y)

The step begins at the lower end of that range and changes only as far as needed to stay in it. A step of 1/L at all
times would shrink towards zero on networks: their curvature grows until it is about 2/step and stays there (Cohen et
al., ICLR 2021), so a shorter step is answered by a larger curvature.

L is found by power iteration on secants of the gradient in y, six iterations at the start. Then, at every tenth step
and at each of the first ten, one more on the step's batch, from the direction found before; it costs a gradient of F
and of f in y. Increases take effect immediately; decreases are limited to 10 % per check and ignored during the first
ten steps.

alpha is left to an update rule that finds the length of its steps (`updates.distance_over_gradients`); other rules need
it as a number. c and gamma are not step sizes and are not found: c is 1 unless given, for F and f that are losses of
one kind and scale; it does not grow, since F would vanish within the few thousand steps of a network. gamma is 1, or
10/L if that is more: the pull between y and theta turns their two directions about each other, which momentum tolerates
only while it is small compared with the curvature.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from nas_moreau.bilevel.automatic.curvature import power_iteration
from nas_moreau.bilevel.automatic.rule import AutoRule, Sizes
from nas_moreau.bilevel.method import Batches, Iterate
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.tensors import Tensors, add, grad_y, norm, random_like, scale, subtract

if TYPE_CHECKING:
    from nas_moreau.bilevel.moreau_envelope import StepRecord

# The constants below were tuned on hyper-cleaning and few-shot learning, seeds 100 to 102
# (docs/hyperparameter_learning.md).

ITERATIONS = 6
"""Power iterations at the start."""

CHECK_EVERY = 10
"""Steps between two checks of the curvature after the first ten; one check costs two gradients."""

FALL = 0.9
"""Smallest factor by which the curvature in use decreases in one check."""

SHORT, LONG = 1.0, 2.0
"""Bounds of a step times its curvature; descent with a step above the second diverges on a quadratic."""

C, GAMMA, ENVELOPE = 1.0, 1.0, 10.0
"""Default c, and two lower bounds of the default gamma, the second in units of 1/L."""


class Tracked(NamedTuple):
    """What is known of the curvature in y.

    Attributes:
        step: The step size of y and theta.
        curvature: L, the largest eigenvalue found of F_yy/c + f_yy.
        along: The direction in which it was found, of length 1.
        c, gamma: The constants, given or chosen.
    """

    step: float
    curvature: float
    along: Tensors
    c: float
    gamma: float


def begin(problem: Bilevel, x: Tensors, y: Tensors, batches: Batches, c: float | None, gamma: float | None) -> Tracked:
    """Returns the constants at the start; c and gamma are None where they are not given.

    Raises:
        ValueError: A gradient is not finite, or there is no curvature in y.
    """
    c = C if c is None else c
    drawn = random_like(y, torch.Generator(device="cpu").manual_seed(0))
    here = _gradient(problem, x, y, c, batches)
    if not math.isfinite(float(norm(here))):
        raise ValueError("A gradient of F or f is not finite at the start. Start elsewhere, or correct F and f.")
    h = _length(y)

    def bend(along: Tensors) -> Tensors:
        return scale(subtract(_gradient(problem, x, add(y, along, h), c, batches), here), 1 / h)

    curvature, along = power_iteration(bend, scale(drawn, 1 / float(norm(drawn))), ITERATIONS)
    if not 0 < curvature < math.inf:
        raise ValueError(
            "No curvature in y was found at the start, so the step sizes of y and theta cannot be chosen. "
            "Give beta and eta."
        )
    gamma = max(GAMMA, ENVELOPE / curvature) if gamma is None else gamma
    return Tracked(SHORT / (curvature + 1 / gamma), curvature, along, c, gamma)


def after(problem: Bilevel, taken: StepRecord) -> Iterate:
    """Returns what the step led to, with the curvature checked where the step began if it is time to do so."""
    new_x, new_y, new = taken.after
    return Iterate(new_x, new_y, new._replace(tuning=check(problem, taken)))


def check(problem: Bilevel, taken: StepRecord) -> Tracked:
    """Returns the constants after a step, with the curvature at the point where it began if it is time for a check."""
    tracked: Tracked = taken.before.state.tuning
    k, c, gamma = taken.before.state.k, taken.used.c, taken.used.gamma
    early = k < CHECK_EVERY
    if not early and k % CHECK_EVERY != CHECK_EVERY // 2:
        return tracked
    y = taken.before.y
    h = _length(y)
    moved = add(y, tracked.along, h)
    bent = scale(subtract(_gradient(problem, taken.x_of_y, moved, c, taken.batches), taken.grad_y), 1 / h)
    found = float(norm(bent))
    if not 0 < found < math.inf:
        return tracked
    curvature = max(found, tracked.curvature * (1 if early else FALL))
    bend = curvature + 1 / gamma
    step = min(max(tracked.step, SHORT / bend), LONG / bend)
    return tracked._replace(step=step, curvature=curvature, along=scale(bent, 1 / found))


def explain(tracked: Tracked) -> str:
    """Returns a sentence on the constants in use."""
    return (
        f"step {tracked.step:.3g} of y and theta, curvature of F/c + f in y {tracked.curvature:.3g} where the "
        f"iteration is; c {tracked.c:.3g} and gamma {tracked.gamma:.3g}"
    )


def _length(y: Tensors) -> float:
    """Returns h of the secants, the fourth root of the precision so that noise in single precision stays small."""
    eps = max(torch.finfo(t.dtype).eps for t in y)
    return eps**0.25 * (0.1 + float(norm(y)) / math.sqrt(sum(t.numel() for t in y)))


def _gradient(problem: Bilevel, x: Tensors, y: Tensors, c: float, batches: Batches) -> Tensors:
    """Returns the gradient of F/c + f in y."""
    upper, lower = (grad_y(smooth, x, y, batch) for smooth, batch in zip((problem.F, problem.f), batches))
    return add(lower, upper, 1 / c)


TRACKED = AutoRule(
    begin=begin,
    penalty=lambda tracked, k, p: tracked.c,
    sizes=lambda tracked, c_k, gamma: Sizes(None, tracked.step, tracked.step),
    after=after,
    last_penalty=lambda tracked: None,
    hold=lambda tracked: tracked,
    explain=explain,
)
"""The rule for networks, where an update rule acts on x's direction."""
