"""From a place near a solution to the solution: descent along the implicit hypergradient, and what holds at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from nas_moreau.bilevel.second_order import checks
from nas_moreau.bilevel.second_order.flat import FlatProblem
from nas_moreau.bilevel.second_order.implicit import at_start, hyper_objective
from nas_moreau.bilevel.second_order.lower import Lower
from nas_moreau.bilevel.second_order.upper import (
    STATIONARY_STEP,
    Descent,
    Evaluate,
    Pair,
    Place,
    Settings,
    descend,
    rounding_error,
)

FAR_ENOUGH = 1e-2
"""Share of x along flat directions above which it is asked whether Phi has levelled off."""
LOOK = 25
"""Line searches after which the gradient is compared with the values once: a wrong one would spend all evaluations."""
RESTARTS = 4
"""Descents from lower places, after a maximum, a saddle or a worse basin."""


class Finished(NamedTuple):
    """What the finish came to.

    Attributes:
        descent: How the descent of Phi ended; its place carries the `Lower` there.
        curvature: Smallest curvature of Phi over the largest; NaN where it was not measured.
        step: Newton step of x relative to its size; the quasi-Newton step where the curvature was not measured, the
            radius of a stationary kink at a kink.
        consistent: Whether the hypergradient is the slope of Phi.
        attained: False where Phi only falls towards a value that it reaches at no x, as far as can be seen.
    """

    descent: Descent
    curvature: float
    step: float
    consistent: bool
    attained: bool

    @property
    def lower(self) -> Lower:
        """The lower level at the point, where Phi is the exact hyper-objective."""
        return self.descent.place.carry


def finish(
    flat: FlatProblem,
    u: Tensor,
    w: Tensor,
    *,
    tolerance: float,
    steps: int,
    stop: Callable[[Place], bool] = lambda place: False,
    origin: Place | None = None,
    pairs: Sequence[Pair] = (),
) -> Finished | None:
    """Returns the stationary point of Phi reached from (u, w); None where Phi is not defined at the start.

    Args:
        flat: Its lower level is smooth, or g and the projections are differentiable by autograd, or it has a
            constraint.
        u: x.
        w: y; it chooses the lower level's basin.
        tolerance: On the square root of the predicted relative decrease of Phi.
        steps: Maximum number of line searches of each of the descents.
        stop: Called after every line search; True ends the descent.
        origin: The place that sizes of x and decreases are measured from; default the start.
        pairs: Memory of an earlier descent that this one continues.
    """
    evaluate = hyper_objective(flat)
    project = None if flat.problem.project_x is None else flat.onto_x
    begin = evaluate(flat.onto_x(u), at_start(w))
    if not begin.finite:
        return None
    settings = Settings(tolerance, steps, flat.eps, project, stop, origin)
    return minimise(evaluate, begin, settings, pairs)


def minimise(evaluate: Evaluate, begin: Place, settings: Settings, pairs: Sequence[Pair] = ()) -> Finished:
    """Returns where descents end that continue from maxima, saddles, plateaus and worse basins."""
    settings = settings if settings.origin is not None else settings._replace(origin=begin)
    origin, seen, wrong = settings.origin, 0, False
    assert origin is not None

    def stop(place: Place) -> bool:
        nonlocal seen, wrong
        seen += 1
        if seen == LOOK:
            size = checks.sizes_of(place.u, origin.u)
            wrong = not checks.gradient_is_right(evaluate, place, size, settings.eps, settings.project)
        return settings.stop(place) or wrong

    descent = descend(evaluate, begin, settings._replace(stop=stop), pairs)
    if wrong:
        running = descent._replace(stopped=False)
        return Finished(running, math.nan, descent.step, consistent=False, attained=True)
    curvature = None
    for _ in range(RESTARTS):
        if descent.stopped or descent.unbounded:
            return Finished(descent, math.nan, descent.step, False, not descent.unbounded)
        curvature = _curvature(evaluate, descent, settings)
        other = _lower(evaluate, descent, settings, curvature)
        if other is None:
            break
        descent = descend(evaluate, other, settings)
    return _examined(evaluate, descent, settings, curvature)


def _curvature(evaluate: Evaluate, descent: Descent, settings: Settings) -> checks.Curvature | None:
    """Returns the curvature where a descent ended; None on a set X, or beside the edge of the domain."""
    if settings.project is not None:
        return None
    size = checks.sizes_of(descent.place.u, descent.origin.u)
    noise = rounding_error(descent.place, descent.origin, settings.eps)
    return checks.curvature_at(evaluate, descent.place, size, settings.eps, noise)


def _lower(
    evaluate: Evaluate, descent: Descent, settings: Settings, curvature: checks.Curvature | None
) -> Place | None:
    """Returns a lower place, if the descent ended at a maximum, a saddle, a plateau or in a worse basin."""
    place, eps, project = descent.place, settings.eps, settings.project
    size, found = checks.sizes_of(place.u, descent.origin.u), None
    if curvature is not None and curvature.lowest < checks.NEGATIVE:
        found = checks.lower_place(evaluate, place, curvature.direction)
    elif curvature is not None and curvature.step > STATIONARY_STEP and bool(curvature.move.any()):
        found = checks.newton_place(evaluate, place, curvature)  # directions that the descent has not felt
    if found is None and curvature is not None and curvature.flat.shape[1]:
        found = checks.lower_place_around(evaluate, place, size, eps, project, curvature.flat)
    if found is None and (len(place.u) <= checks.SMALL or project is not None):
        found = checks.lower_place_around(evaluate, place, size, eps, project)
    return found


def _examined(evaluate: Evaluate, descent: Descent, settings: Settings, curvature: checks.Curvature | None) -> Finished:
    """Returns the point with the step that is left, and whether the gradient can be trusted."""
    place, project, eps = descent.place, settings.project, settings.eps
    if descent.stopped or descent.unbounded:
        return Finished(descent, math.nan, descent.step, False, not descent.unbounded)
    size = checks.sizes_of(place.u, descent.origin.u)
    lowest, step, attained = math.nan, descent.step, True
    if curvature is not None:
        lowest = curvature.lowest
        step = curvature.step if len(place.u) <= checks.SMALL else step
        attained = not _levelled_off(evaluate, descent, curvature, size)
    rising = math.isnan(lowest) or lowest >= checks.NEGATIVE
    if project is None and not (rising and min(descent.decrease, step) <= settings.tolerance):
        radius = checks.kink_radius(evaluate, place, size)
        step = min(step, radius)
        if math.isfinite(radius):  # differences of gradients across a kink are no curvature
            lowest = math.nan
    consistent = checks.gradient_is_right(evaluate, place, size, eps, project)
    return Finished(descent, lowest, step, consistent, attained)


def _levelled_off(evaluate: Evaluate, descent: Descent, curvature: checks.Curvature, size: Tensor) -> bool:
    """Whether x came far along directions that have neither slope nor curvature now, and as far again changes nothing.

    Phi then falls towards a value that it reaches at no x, or is a plateau.
    """
    place, origin = descent.place, descent.origin
    if curvature.level:
        return True
    if len(place.u) > checks.SMALL:
        return _some_levelled_off(evaluate, descent, place.u - origin.u)
    came = size * (curvature.flat @ (curvature.flat.T @ ((place.u - origin.u) / size)))
    if float(came.norm()) <= FAR_ENOUGH * float(place.u.norm()):
        return False
    beyond = evaluate(place.u + came, place.carry)
    return beyond.value - place.value <= 1e-6 * abs(origin.value - place.value)


def _some_levelled_off(evaluate: Evaluate, descent: Descent, came: Tensor) -> bool:
    """Whether some of many unknowns came far and can go as far again without a change of Phi.

    They are those along which Phi has no slope now, nor where all of them have gone as far again.
    """
    place, origin = descent.place, descent.origin
    beyond = evaluate(place.u + came, place.carry)
    if not beyond.finite:
        return False
    change = 1e-13 * max(abs(place.value), abs(origin.value - place.value))
    still = [(gradient * came).abs() <= change for gradient in (place.gradient, beyond.gradient)]
    level = still[0] & still[1] & (came.abs() > FAR_ENOUGH * place.u.abs())
    if not bool(level.any()):
        return False
    return evaluate(place.u + came * level, place.carry).value - place.value <= change
