"""Descent of a function of x whose gradient is known: L-BFGS, or spectral projected gradients on a set X."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

MEMORY = 30
SEARCH = 50
"""Evaluations of one line search."""
FAR = 1e15
"""Distance from the start, in units of 1 + |start|, at which the function counts as unbounded below."""
TINY = 1e-150
"""Curvature below which a pair of L-BFGS would divide by zero."""
NEAR_ZERO = 1e-3
"""Share of the way from the origin, or of the largest entry, below which an entry of x counts as zero."""
STATIONARY_STEP = 1e-4
"""Largest relative quasi-Newton step at which a small predicted decrease ends the descent."""


class Place(NamedTuple):
    """A function of x at a point: value (infinite outside its domain), gradient, and what the next evaluation needs."""

    u: Tensor
    value: float
    gradient: Tensor
    carry: Any

    @property
    def finite(self) -> bool:
        """Whether value and gradient are numbers."""
        return math.isfinite(self.value) and bool(torch.isfinite(self.gradient).all())


Evaluate = Callable[[Tensor, Any], Place]
Pair = tuple[Tensor, Tensor]


class Descent(NamedTuple):
    """Where a descent ended.

    Attributes:
        place: The best place.
        decrease: Square root of the predicted further decrease over the size of the function; 0 at a stationary point.
        step: The last quasi-Newton step relative to x, or to how far x came.
        iterations: Line searches.
        origin: Where sizes and decreases are measured from.
        pairs: The memory of L-BFGS.
        unbounded: Whether x went farther than `FAR`.
        stopped: Whether `Settings.stop` ended it.
    """

    place: Place
    decrease: float
    step: float
    iterations: int
    origin: Place
    pairs: Sequence[Pair] = ()
    unbounded: bool = False
    stopped: bool = False


class Settings(NamedTuple):
    """What a descent is limited by.

    Attributes:
        tolerance: On `Descent.decrease`.
        steps: Maximum number of line searches.
        eps: Relative rounding error of the function.
        project: Projection onto X, None for the whole space.
        stop: Called after every line search; True ends the descent.
        origin: The place that sizes of x and decreases are measured from; default the start of the descent.
    """

    tolerance: float
    steps: int
    eps: float
    project: Callable[[Tensor], Tensor] | None = None
    stop: Callable[[Place], bool] = lambda place: False
    origin: Place | None = None


def descend(evaluate: Evaluate, start: Place, settings: Settings, pairs: Sequence[Pair] = ()) -> Descent:
    """Returns a local minimiser by L-BFGS with a weak Wolfe line search (Lewis & Overton, 2013: kinks are allowed).

    With a projection: spectral projected gradients (Birgin, Martinez & Raydan, 2000).

    Args:
        evaluate: (u, carry) -> place.
        start: Where to begin.
        settings: Limits.
        pairs: The memory of a descent that this one continues.
    """
    origin = start if settings.origin is None else settings.origin
    if settings.project is not None:
        return _projected(evaluate, start, settings, settings.project, origin)
    place, memory, quiet = start, list(pairs), 0
    decrease, length = math.inf, math.inf
    for k in range(settings.steps):
        move = -_inverse(memory, place.gradient)
        slope = float(place.gradient @ move)
        if not slope < 0:
            memory, move = [], -place.gradient
            slope = float(place.gradient @ move)
        if slope == 0:
            return Descent(place, 0.0, 0.0, k, origin, memory)
        length = relative_length(move, place.u, origin.u)
        decrease = predicted_decrease(slope, place, origin) if memory else math.inf
        known = len(memory) >= min(2, len(move))
        quiet = quiet + 1 if known and decrease <= settings.tolerance and length <= STATIONARY_STEP else 0
        if quiet >= 2:
            return Descent(place, decrease, length, k, origin, memory)
        found = _wolfe(evaluate, place, move, slope, settings.eps, 1.0 if memory else _first_length(place))
        if found is None:
            if not memory:
                return Descent(place, decrease, length, k, origin, memory)
            memory = []
            continue
        s, t = found.u - place.u, found.gradient - place.gradient
        if float(s @ t) > max(1e-14 * float(s.norm()) * float(t.norm()), TINY):
            memory = [*memory[-MEMORY + 1 :], (s, t)]
        place = found
        if float((place.u - origin.u).norm()) > FAR * (1 + float(origin.u.norm())):
            return Descent(place, math.inf, math.inf, k + 1, origin, memory, unbounded=True)
        stopped = settings.stop(place)
        if stopped or k + 1 == settings.steps:
            move = -_inverse(memory, place.gradient)
            decrease = predicted_decrease(float(place.gradient @ move), place, origin) if memory else math.inf
            length = relative_length(move, place.u, origin.u)
            return Descent(place, decrease, length, k + 1, origin, memory, stopped=stopped)
    return Descent(place, decrease, length, settings.steps, origin, memory)


def rounding_error(place: Place, origin: Place, eps: float) -> float:
    """Returns the absolute rounding error of the function, whose size may have been larger at the origin."""
    return eps * max(abs(place.value), abs(origin.value - place.value))


def predicted_decrease(slope: float, place: Place, origin: Place) -> float:
    """Returns the square root of the decrease along a quasi-Newton step over the size of the function."""
    scale = max(abs(place.value), abs(origin.value - place.value), 1e-300)
    return math.sqrt(max(0.0, -0.5 * slope) / scale)


def relative_length(move: Tensor, u: Tensor, origin: Tensor) -> float:
    """Returns |move| relative to |u| or, where u is near 0, to a thousandth of how far u came; no unit of x enters."""
    return float(move.norm()) / max(float(u.norm()), NEAR_ZERO * float((u - origin).norm()), 1e-300)


def _first_length(place: Place) -> float:
    steepness = float(place.gradient.norm())
    return min(1.0, (1 + float(place.u.norm())) / steepness) if steepness else 1.0


def _inverse(memory: list[Pair], gradient: Tensor) -> Tensor:
    """Returns the L-BFGS inverse Hessian times the gradient (two loops)."""
    q, weights = gradient.clone(), []
    for s, t in reversed(memory):
        rho = 1 / float(s @ t)
        a = rho * float(s @ q)
        weights.append((rho, a))
        q = q - a * t
    if memory:
        s, t = memory[-1]
        q = q * (float(s @ t) / float(t @ t))
    for (s, t), (rho, a) in zip(memory, reversed(weights)):
        q = q + (a - rho * float(t @ q)) * s
    return q


def _wolfe(evaluate: Evaluate, place: Place, move: Tensor, slope: float, eps: float, length: float) -> Place | None:
    """Returns a place on the line with sufficient decrease and a flatter slope; None where there is no decrease.

    Near the minimum differences of values are rounding error: the slopes decide there (Hager & Zhang, 2005).
    """
    low, high, best = 0.0, math.inf, None
    slack = 8 * eps * abs(place.value)
    for _ in range(SEARCH):
        new = evaluate(place.u + length * move, place.carry if best is None else best.carry)
        finite = new.finite
        steep = float(new.gradient @ move) if finite else math.inf
        enough = finite and new.value <= place.value + 1e-4 * length * slope
        level = (
            finite and new.value <= place.value + slack and steep <= -0.8 * slope and abs(slope) * length < 10 * slack
        )
        if not (enough or level):
            high = length
        elif steep < 0.9 * slope:
            low, best = length, new
        else:
            return new
        length = 0.5 * (low + high) if math.isfinite(high) else 4 * length
        if math.isfinite(high) and high - low <= 1e-12 * high:
            break
    return best


def _projected(
    evaluate: Evaluate, start: Place, settings: Settings, project: Callable[[Tensor], Tensor], origin: Place
) -> Descent:
    place, spectral, recent = start, _first_length(start), [start.value]
    longest = [spectral]

    def left() -> tuple[float, float]:
        # the longest of the last spectral steps: a single short one must not pass for stationarity
        asked = project(place.u - max(longest) * place.gradient) - place.u
        slope = float(place.gradient @ asked)
        if not slope < 0:
            return 0.0, 0.0
        return predicted_decrease(slope, place, origin), relative_length(asked, place.u, origin.u)

    for k in range(settings.steps):
        decrease, length = left()
        if decrease <= settings.tolerance and length <= STATIONARY_STEP:
            return Descent(place, decrease, length, k, origin)
        move = project(place.u - spectral * place.gradient) - place.u
        slope, share, found = float(place.gradient @ move), 1.0, None
        for _ in range(SEARCH):
            new = evaluate(place.u + share * move, place.carry)
            slack = 8 * settings.eps * abs(place.value)
            if new.finite and new.value <= max(recent) + 1e-4 * share * slope + slack:
                found = new
                break
            share /= 2
        if found is None:
            return Descent(place, decrease, length, k, origin)
        s, t = found.u - place.u, found.gradient - place.gradient
        bend = float(s @ t)
        spectral = min(1e10, max(1e-10, float(s @ s) / bend)) if bend > 0 else min(1e10, 4 * spectral)
        longest = [*longest[-4:], spectral]
        place, recent = found, [*recent[-9:], found.value]
        if settings.stop(place):
            return Descent(place, *left(), k + 1, origin, stopped=True)
    return Descent(place, *left(), settings.steps, origin)
