"""`solve` without a method: finds the basin, finishes by second order, and certifies the point.

    1. The direct finish: y solved to rounding error at the start, x by quasi-Newton steps along the hypergradient.
    2. Where the lower level is not convex: the Moreau envelope from the same start, whose F-driven y finds the basin
       that F prefers, and a finish from there; at the end several starts of y, for a deeper basin below.
    3. Where the lower level has a set of minimisers: the penalised problem at four penalties, its bias extrapolated.
    4. Where none of this applies (second derivatives or the user's prox are not known to autograd, the problem is too
       large): the envelope alone, its bias removed.

Among the points that pass the checks, the one with the smallest F is returned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from nas_moreau.bilevel.problem import Bilevel, Tensors
from nas_moreau.bilevel.second_order.basins import looks_convex, not_convex_along_coordinates, other_basins
from nas_moreau.bilevel.second_order.by_values import finish_by_values
from nas_moreau.bilevel.second_order.certify import twice_differentiable
from nas_moreau.bilevel.second_order.checks import SMALL
from nas_moreau.bilevel.second_order.finish import Finished, finish
from nas_moreau.bilevel.second_order.flat import OUTSIDE, FlatProblem, OutOfBudgetError
from nas_moreau.bilevel.second_order.implicit import solve_lower
from nas_moreau.bilevel.second_order.lower import DENSE, SINGULAR
from nas_moreau.bilevel.second_order.penalised import finish_penalised
from nas_moreau.bilevel.second_order.trail import Candidate, Envelope, Memory, Trail, Watch
from nas_moreau.bilevel.second_order.upper import Pair, Settings
from nas_moreau.bilevel.solution import UNKNOWN, Certificate, Solution, Status

BASIN_STEPS = 600
"""Steps of the envelope that look for a basin."""
ROUNDS = 8
"""Rounds in which other basins are followed."""
AS_DEEP = 12
"""Minimisers as deep as the best one that are followed in a round."""
BIASED = 1e-6
"""Estimated relative error of x above which an extrapolated point is called biased."""


def solve_by_itself(
    problem: Bilevel,
    x: Tensors,
    y: Tensors,
    envelope: Envelope,
    *,
    steps: int,
    tolerance: float,
    watch: Watch | None = None,
    state: Memory | None = None,
) -> Solution:
    """Returns the solution and how it was found.

    Args:
        problem: The problem.
        x, y: The start.
        envelope: The envelope method on the same problem.
        steps: Maximum number of line searches of x and steps of the envelope.
        tolerance: On the certificate's `lower_residual` and `hypergradient`.
        watch: Called after every step or line search with (k, x, y, None); True ends the run.
        state: Of a run that this one continues.

    Raises:
        ValueError: The state is of an x of another size.
    """
    flat = FlatProblem(problem, x, y)
    begin = flat.start()
    if state is not None and any(len(part) != len(begin[0]) for pair in state.pairs for part in pair):
        raise ValueError("state belongs to an x of another size. Leave it out, or give the x and y it is of.")
    if not flat.finite_at(*begin):
        return _solution(Trail(flat, steps, 0.0, watch, begin), None, "diverged", _NOT_FINITE)
    # float32 cannot do better
    trail = Trail(flat, steps, max(tolerance, 30 * flat.eps), watch, begin)
    values = flat.values(*begin)
    if not flat.alike(values, flat.values(*begin)):
        return _solution(trail, None, "refused", _RANDOM)
    try:
        convex = _search(trail, begin, envelope, () if state is None else state.pairs)
        if not flat.alike(values, flat.values(*begin)):
            return _solution(trail, None, "refused", _RANDOM)
    except KeyboardInterrupt:
        return _solution(trail, None, "stopped", f"Stopped by Ctrl-C after {trail.done} steps; the latest point.")
    if trail.halted:
        return _solution(trail, None, "stopped", f"Stopped by watch or Ctrl-C after {trail.done} steps, latest point.")
    if not trail.candidates:
        return _solution(trail, None, "diverged", f"No path led to finite numbers from this start. {_BELOW}")
    best = trail.best
    shape = "shows no negative curvature" if convex and not flat.nonconvex else "is not convex in y"
    c = best.certificate
    message = (
        f"{_SENTENCES[best.status]}{best.note} The lower level {shape}; found by {best.path} (lower residual "
        f"{c.lower_residual:.1e}, hypergradient {c.hypergradient:.1e}, bias {c.bias:.1e})."
    )
    return _solution(trail, best, best.status, message)


_SENTENCES = {
    "solved": "Solved.",
    "biased": "Right for the penalised problem; the certificate estimates the bias.",
    "out-of-steps": "The tolerance was not met.",
    "not-minimal": "The point is stationary but not a minimum.",
    "diverged": "There is no minimum.",
}
_BELOW = "The lower level may be unbounded below, or not be differentiable where it is minimal. Start elsewhere."


_NOT_FINITE = "F, f, a gradient or the constraint is not finite at the start."
_NOT_DEEPEST = " Whether its lower minimiser is the deepest, and of those the best for F, could not be verified."
_RANDOM = (
    "F or f returns different values at the same point: random numbers, dropout, or a state that changes. Draw them "
    "once before solve, or give what changes as batches=."
)


def _search(trail: Trail, begin: tuple[Tensor, Tensor], envelope: Envelope, pairs: Sequence[Pair]) -> bool:
    """Runs the phases; returns whether the lower level looked convex at the start."""
    flat = trail.flat
    if flat.problem.sharded or not twice_differentiable(flat):
        _envelope_alone(trail, begin, envelope)
        return True
    trail.allow()
    convex = looks_convex(flat, *begin)
    large = len(begin[1]) > DENSE
    # far from a minimiser Newton's method on a large nonconvex level is a long walk: the envelope is nearer
    if convex or not large:
        _finish(trail, *begin, "second order", pairs)
    unbounded = any(candidate.status == "diverged" for candidate in trail.candidates)
    wanted = not convex or flat.nonconvex or not (trail.solved or unbounded)
    if wanted and not trail.halted and trail.left:
        _from_the_envelope(trail, begin, envelope)
    if not (trail.solved or unbounded or trail.halted) and trail.left:
        _by_values(trail)
    if trail.solved and convex and not flat.nonconvex:
        flat.nonconvex = not_convex_along_coordinates(flat, trail.best.u, trail.best.w)
    if (large or not convex or flat.nonconvex) and not trail.halted:
        _other_basins(trail)
    return convex


# --- phases -----------------------------------------------------------------------------------------------------------


def _finish(trail: Trail, u: Tensor, w: Tensor, path: str, pairs: Sequence[Pair] = ()) -> None:
    """Adds the finish from a point, or where the lower level has a set of minimisers the extrapolated one."""
    flat = trail.flat
    trail.allow()
    before = trail.latest
    try:
        found = finish(
            flat,
            u,
            w,
            tolerance=0.3 * trail.precision,
            steps=trail.left,
            stop=trail.seen,
            origin=trail.origin,
            pairs=pairs,
        )
        if found is not None:
            trail.origin = found.descent.origin
            reached = _certified(trail, found, path)
            trail.candidates.append(reached)
            if reached.status == "solved" or not flat.proximal or not _flat_below(reached):
                return
            u, w = reached.u, reached.w  # one of a set of minimisers: F chooses among them
        if trail.left and not flat.problem.coupled:
            trail.allow()
            _penalised(trail, u, w)
    except OutOfBudgetError:
        flat.limit = math.inf
        if trail.latest is not before:
            at = trail.latest
            note = " The evaluations of a phase are spent."
            value = flat.value(flat.F, *at)
            trail.candidates.append(Candidate(*at, value, UNKNOWN, "out-of-steps", path, note=note))
    finally:
        flat.limit = math.inf


def _by_values(trail: Trail) -> None:
    """Adds the finish by values alone, where nothing that the derivatives led to could be certified."""
    flat = trail.flat
    if any(_explained(candidate) for candidate in trail.candidates):
        return
    if len(trail.latest[0]) > SMALL or len(trail.latest[1]) > DENSE:
        return
    at = (trail.best.u, trail.best.w) if trail.candidates else trail.latest
    origin = flat.start()[0] if trail.origin is None else trail.origin.u
    trail.allow()
    try:
        limits = Settings(0.3 * trail.precision, trail.left, flat.eps, stop=trail.seen)
        found = finish_by_values(flat, *at, origin, limits)
        if found is not None:
            candidate = _certified(trail, found, "differences of the values of F(x, y*(x))")
            trail.candidates.append(candidate)
    except OutOfBudgetError:
        pass
    finally:
        flat.limit = math.inf


def _explained(candidate: Candidate) -> bool:
    """Whether it is known why a point is not certified, other than by derivatives that are wrong or missing."""
    return candidate.status in ("biased", "not-minimal") or _flat_below(candidate)


def _flat_below(candidate: Candidate) -> bool:
    """Whether the lower level is solved and has a set of minimisers there."""
    found = candidate.certificate
    return abs(found.lower_curvature) <= SINGULAR and found.lower_residual <= 1e-6


def _penalised(trail: Trail, u: Tensor, w: Tensor) -> None:
    """Adds the limit of penalised minimisers, for a lower level with a set of minimisers."""
    flat = trail.flat
    lower = solve_lower(flat, u, w)
    if flat.smooth and not (abs(lower.curvature) <= SINGULAR or lower.residual <= 1e-3):
        return
    found = finish_penalised(flat, u, w, tolerance=1e-2 * trail.precision, steps=trail.left, stop=trail.seen)
    if found is None:
        return
    end = found.finished
    left = min(end.descent.decrease, end.step)
    certificate = Certificate(found.residual, 0.0, left, found.bias, end.curvature)
    status: Status = "out-of-steps"
    if found.residual <= 1e-6 and left <= 1e3 * trail.precision and end.consistent and end.attained:
        status = "biased" if found.bias > BIASED else "solved"
    if certificate.is_saddle:
        status = "not-minimal"
    value = flat.value(flat.F, found.u, found.w)
    trail.candidates.append(
        Candidate(found.u, found.w, value, certificate, status, "a penalty extrapolated to infinity")
    )


def _certified(trail: Trail, found: Finished, path: str) -> Candidate:
    """Returns the end of a finish with its status."""
    place, lower, descent = found.descent.place, found.lower, found.descent
    left = min(descent.decrease, found.step)
    residual = lower.error
    certificate = Certificate(residual, lower.curvature, left, found.step, found.curvature)
    multipliers = None if lower.multipliers is None else [lower.multipliers]
    note, status = "", _status(trail, found, certificate)
    if descent.unbounded:
        note = " F falls without end along the lower level's solutions."
    elif not found.attained:
        note = " F(x, y*(x)) is flat there: a plateau, or an infimum that is reached at no x."
    elif status == "out-of-steps" and lower.outside > 1e-7:
        note = " The gradient of an active constraint vanishes there: give an equality h = 0 as h <= 0 and -h <= 0."
    elif status == "out-of-steps" and not found.consistent and not descent.stopped:
        note = " The hypergradient is not the slope of F(x, y*(x)) there: a kink, or a part hidden from autograd."
    elif status == "out-of-steps" and abs(lower.curvature) <= SINGULAR:
        note = " The lower level has a set of minimisers there."
    return Candidate(place.u, lower.w, place.value, certificate, status, path, multipliers, descent.pairs, note)


def _status(trail: Trail, found: Finished, certificate: Certificate) -> Status:
    """Returns what a finish came to: whether both residuals are below the tolerance at a minimum of both levels."""
    lower, descent = found.lower, found.descent
    if descent.unbounded:
        return "diverged"
    if certificate.is_saddle:
        return "not-minimal"
    exact = lower.definite and certificate.lower_residual <= max(trail.precision, 1e-7)
    by_value = descent.decrease <= trail.precision and found.step <= 1e-4
    met = exact and (by_value or found.step <= 10 * trail.precision)
    return "solved" if met and found.consistent and found.attained else "out-of-steps"


def _from_the_envelope(trail: Trail, begin: tuple[Tensor, Tensor], envelope: Envelope) -> None:
    """Adds the finish from where the envelope leads, and what the envelope found itself if that is all there is."""
    flat = trail.flat
    if flat.problem.coupled:
        return
    found = _run_envelope(trail, begin, envelope, min(BASIN_STEPS, trail.left))
    if found is None:
        return
    _finish(trail, *found, "the envelope, then second order")
    if not trail.usable and not trail.halted and trail.left:
        _envelope_alone(trail, found, envelope)


def _envelope_alone(trail: Trail, begin: tuple[Tensor, Tensor], envelope: Envelope) -> None:
    """Adds the envelope's own limit, its bias removed."""
    if trail.flat.problem.coupled or not trail.left:
        return
    found: list[Solution] = []
    at = _run_envelope(trail, begin, envelope, trail.left, found)
    if at is None:
        return
    certificate = found[0].certificate
    known = found[0].status in ("solved", "biased", "not-minimal") and certificate.hypergradient != math.inf
    status = found[0].status if known else "out-of-steps"
    value = trail.flat.value(trail.flat.F, *at)
    trail.candidates.append(Candidate(*at, value, certificate, status, "the envelope"))


def _run_envelope(
    trail: Trail,
    begin: tuple[Tensor, Tensor],
    envelope: Envelope,
    steps: int,
    debiased: list[Solution] | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Returns where the envelope leads; None where it cannot run, diverges or is stopped.

    Args:
        trail: The run.
        begin: The start.
        envelope: The method.
        steps: Maximum number of steps.
        debiased: Gets the solution; with it the bias is removed at the end.
    """
    flat = trail.flat
    try:
        found = envelope(*flat.lists(*begin), steps, debias=debiased is not None)
    except OUTSIDE:  # no curvature to derive step sizes from, or a step out of the domain
        return None
    trail.done += min(found.steps, steps)
    trail.elsewhere += found.evaluations
    trail.halted = trail.halted or found.status == "stopped"
    trail.values.extend(found.history.get("F", ()))
    if found.status == "diverged":
        return None
    trail.latest = flat.flatten(found.x), flat.flatten(found.y)
    if debiased is not None:
        debiased.append(found)
    return None if trail.halted else trail.latest


def _other_basins(trail: Trail) -> None:
    """Follows minimisers of the lower level that are not above the ones that were found."""
    flat = trail.flat
    for _ in range(ROUNDS):
        if not trail.solved or trail.halted:
            return
        best = trail.best
        trail.allow()
        try:
            deeper, others = other_basins(flat, best.u, best.w)
        except OutOfBudgetError:
            deeper, others = None, []
        finally:
            flat.limit = math.inf
        if deeper is not None:  # what was found is no minimiser of the lower level at its x
            flat.nonconvex = True
            trail.candidates = [candidate for candidate in trail.candidates if candidate is not best]
            note = " A deeper minimiser of the lower level exists at this x."
            trail.candidates.append(best._replace(status="not-minimal", note=note))
            if trail.left:
                _finish(trail, best.u, deeper, "a deeper basin of the lower level")
            continue
        before = len(trail.candidates)
        for other in others[:AS_DEEP]:
            if trail.best is best and trail.left:
                _finish(trail, best.u, other, "another basin of the lower level")
        if trail.best is best:
            known = [c.value for c in trail.candidates[before:] if c.certificate.lower_residual < 1e-6]
            if not known or min(known) >= best.value - 1e-6 * abs(best.value):
                return
            break  # F is lower there, but no solution was reached
    trail.candidates = [
        c._replace(status="out-of-steps", note=_NOT_DEEPEST) if c.status == "solved" else c for c in trail.candidates
    ]


def _solution(trail: Trail, best: Candidate | None, status: Status, message: str) -> Solution:
    """Returns the solution at a candidate, or at the latest point."""
    u, w = trail.latest if best is None else (best.u, best.w)
    x, y = trail.flat.lists(u.detach(), w.detach())
    certificate = UNKNOWN if best is None else best.certificate
    return Solution(
        x,
        y,
        Memory(trail.done, () if best is None else tuple(best.pairs)),
        status,
        message,
        {"F": trail.values},
        trail.done,
        certificate.hypergradient,
        certificate=certificate,
        evaluations=trail.evaluations,
        multipliers=None if best is None else best.multipliers,
    )
