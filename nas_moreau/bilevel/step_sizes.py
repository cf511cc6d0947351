"""The five constants of the method, found from the problem: alpha, beta, eta, gamma and c where they are "auto".

Everything follows from block-wise curvatures L, found by power iteration on secants (grad(z + h d) - grad(z)) / h
of the user's own gradients, so F and f need not be twice differentiable:

    eta   = .8 / (L_f^yy + 1/gamma)
    beta  = .8 / (L_F^yy / c_k + L_f^yy + 1/gamma)
    alpha = .8 / (L_F^xx / c_k + max(L_f^xx, (L_phi^xy)^2 / (m + 1/gamma)))

each .8 over the Lipschitz constant of its own direction, (9), (12) and (10). The last term is how theta* answers to x,
with m = L_f^yy, or with g (which hides the direction of that answer) the least curvature of f(x, .). Then, by whether
the lower level was seen to be convex in y:

              convex            not
    gamma     10 / L_f^yy       200 / L_f^yy
    first c   20 L_F / L_phi    .5 L_F / L_phi

gamma: v_gamma is close to the value function (the bias of the penalty is (1 + 1/(gamma L))/c), and 1/gamma still
anchors theta. Near a maximum of a nonconvex lower level -v_gamma pushes y away from the valley that theta found, by
|y - theta|/gamma; hence 200. First c: where there may be many basins, F/c has to bend more than phi - v_gamma can, so
that the penalised problem has one basin, that of F; with one basin below there is none to miss, and y had better stay
near the lower level's solution. Where F has no curvature the ratio of the slopes takes the place of L_F / L_phi.

From there c climbs a ladder: whenever the iteration has settled (its movement is below a tenth of the push of F/c) or
500 steps have passed, c_k is doubled, theta is found anew from y, and the curvatures are measured anew, until c_k is
150 L_F / L_phi. On every rung c_k = c (1 + (k - k_rung)/100)^p, the theory's schedule on a slower clock. Following the
minimiser from small c is what finds the right basin where a fixed constant does not.

Where the lower level is convex the curvatures in use are those of the place where the iteration is, measured on every
rung; where it is not, the largest met, far from the way too. In the first steps, and then now and then, the secants of
the steps of x and theta are looked at: a step that was too long is taken back, and the next ones are shorter.

The theory asks for gamma < 1/(2 rho), with rho the weak convexity of f(x, .). At first gamma may be larger (below that
bound a maximum of the lower level is a feasible point, and attracts); `explain` says whether the bound holds where the
iteration is.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.tensors import Tensors, add, dot, evaluate, grad_x_of_g, norm, random_like, scale, subtract

FIRST_CONVEX, FIRST_NONCONVEX, LAST = 20.0, 0.5, 150.0
"""c on the first rung, by whether the lower level was seen to be convex in y, and on the last; units: L_F / L_phi."""

ON_THE_WAY = 4
"""How many of the places at which curvatures are measured at the start lie between it and the minimiser of F."""

PROBES = 32
"""Points at which a nonconvex lower level is looked for at the start, one gradient each."""

SAFETY = 0.8
"""What a step is of the reciprocal of its direction's Lipschitz constant."""

ENVELOPE, ENVELOPE_NONCONVEX = 10.0, 200.0
"""gamma in units of 1 / L_f^yy, where the lower level was seen to be convex in y and where not."""

CLOCK = 100
"""Steps in which (k+1)^p of the theory is taken to advance by one; faster growth freezes x before it has arrived."""

LONGEST = 500
"""Steps after which the next rung is climbed though the iteration has not settled."""


class Curvature(NamedTuple):
    """What is known of F, f and phi at a place, or the worst of several.

    Attributes:
        F_xx, F_yy, F, f_xx, f_yy, phi_xy, phi: Lipschitz constants of gradients, by blocks and of all together.
        rho: The weak convexity of f(x, .).
        answer: m.
        F_slope, phi_slope: Lengths of the gradients.
    """

    F_xx: float
    F_yy: float
    F: float
    f_xx: float
    f_yy: float
    phi_xy: float
    phi: float
    rho: float
    answer: float
    F_slope: float
    phi_slope: float


class Tuning(NamedTuple):
    """What was chosen.

    Attributes:
        curvature: What it rests on.
        c, since: The penalty of this rung, and the step at which it was set.
        c_last: That of the last rung.
        gamma: Of the envelope.
        rungs: How many were climbed.
        convex: Whether the lower level was seen to be convex in y.
    """

    curvature: Curvature
    c: float
    since: int
    c_last: float
    gamma: float
    rungs: int
    convex: bool


def measure(problem: Bilevel, x: Tensors, y: Tensors, upper: Any, lower: Any, seed: int, iterations: int) -> Curvature:
    """Returns the curvatures at (x, y); about 10 gradient evaluations of F and of f for each iteration."""
    generator = torch.Generator(device="cpu").manual_seed(seed)

    def gradient(smooth: Any, batch: Any, x: Tensors, y: Tensors, with_g: bool) -> tuple[Tensors, Tensors]:
        found = evaluate(smooth, x, y, batch, True, True)
        grad_x = found.grad_x
        if with_g and problem.g is not None:
            grad_x = add(grad_x, grad_x_of_g(problem.g, x, y))
        return grad_x, found.grad_y

    def secant(smooth: Any, batch: Any, with_g: bool) -> Any:
        at_x, at_y = gradient(smooth, batch, x, y, with_g)
        eps = max(torch.finfo(t.dtype).eps for t in [*x, *y])
        h = math.sqrt(eps) * (1 + float(norm([*x, *y])))

        def times(u: Tensors, v: Tensors) -> tuple[Tensors, Tensors]:
            moved_x, moved_y = gradient(smooth, batch, add(x, u, h), add(y, v, h), with_g)
            return scale(subtract(moved_x, at_x), 1 / h), scale(subtract(moved_y, at_y), 1 / h)

        return times, float(norm([*at_x, *at_y]))

    def draw(like: Tensors) -> Tensors:
        drawn = random_like(like, generator)
        return scale(drawn, 1 / float(norm(drawn)))

    def largest(apply: Any, start: Tensors) -> float:
        value, v = 0.0, start
        for _ in range(iterations):
            v = apply(v)
            value = float(norm(v))
            if not 0 < value < math.inf:
                return value
            v = scale(v, 1 / value)
        return value

    no_x, no_y, m = [torch.zeros_like(t) for t in x], [torch.zeros_like(t) for t in y], len(x)
    times_F, slope_F = secant(problem.F, upper, False)
    times_f, slope_f = secant(problem.f, lower, True)

    def joint(times: Any) -> Any:
        return lambda v: [t for part in times(v[:m], v[m:]) for t in part]

    f_yy = largest(lambda v: times_f(no_x, v)[1], draw(y))
    least = f_yy - largest(lambda v: subtract(scale(v, f_yy), times_f(no_x, v)[1]), draw(y))
    return Curvature(
        F_xx=largest(lambda u: times_F(u, no_y)[0], draw(x)),
        F_yy=largest(lambda v: times_F(no_x, v)[1], draw(y)),
        F=largest(joint(times_F), draw([*x, *y])),
        f_xx=largest(lambda u: times_f(u, no_y)[0], draw(x)),
        f_yy=f_yy,
        # from y to x only: g is not differentiable in y
        phi_xy=math.sqrt(largest(lambda v: times_f(times_f(no_x, v)[0], no_y)[1], draw(y)))
        if problem.g is None
        else _operator_norm(times_f, no_x, [draw(y) for _ in range(iterations)]),
        phi=largest(joint(times_f), draw([*x, *y])),
        rho=max(0.0, -least),
        answer=f_yy if problem.g is None else max(0.0, least),
        F_slope=slope_F,
        phi_slope=slope_f,
    )


def _operator_norm(times: Any, no_x: Tensors, directions: list[Tensors]) -> float:
    """Returns the largest |H_xy v| met, v of length 1."""
    return max(float(norm(times(no_x, v)[0])) for v in directions)


def start(problem: Bilevel, x: Tensors, y: Tensors, upper: Any = None, lower: Any = None) -> Tuning:
    """Returns the constants of the first step, from curvatures at the start, near F's minimiser, and around both."""
    here = measure(problem, x, y, upper, lower, 0, 6)
    far_x, far_y = x, y
    for _ in range(20 if here.F > 0 else 0):
        found = evaluate(problem.F, far_x, far_y, upper, True, True)
        far_x = problem.onto_x(add(far_x, found.grad_x, -1 / here.F))
        far_y = add(far_y, found.grad_y, -1 / here.F)
    size = sum(t.numel() for t in [*x, *y])
    moved = subtract([*far_x, *far_y], [*x, *y])
    radius = max(float(norm([*x, *y])), float(norm(moved))) / math.sqrt(size) or 1.0
    generator = torch.Generator(device="cpu").manual_seed(0)

    def around(tensors: Tensors) -> Tensors:
        return [t + radius * drawn for t, drawn in zip(tensors, random_like(tensors, generator))]

    def between(share: float) -> tuple[Tensors, Tensors]:
        return add(x, subtract(far_x, x), share), add(y, subtract(far_y, y), share)

    def shifted(distance: float) -> tuple[Tensors, Tensors]:
        return far_x, [t + distance for t in far_y]

    # on the way to the minimiser of F, with all of y moved alike, and with each element moved by itself: curvatures of
    # many equal terms add up only where the terms are in step
    places = [between(0.25), between(0.5), between(0.75), (far_x, far_y), shifted(radius / 2), shifted(-radius / 2)]
    places += [(problem.onto_x(around(u)), around(v)) for u, v in ((x, y), (far_x, far_y))]
    measured = [here, *(measure(problem, u, v, upper, lower, 1 + i, 3) for i, (u, v) in enumerate(places))]
    rho = _nonmonotone(problem, [(x, y), (far_x, far_y)], around, lower)
    rho = max(rho, _worst(measured).rho)
    # a convex lower level has no valley to be missed, so what is far from the way need not slow the steps on it
    convex = rho < 0.01 * _worst(measured).f_yy
    worst = _worst(measured[: 1 + ON_THE_WAY] if convex else measured)._replace(rho=rho)
    if not worst.phi > 0:
        raise ValueError(
            "No curvature was found in the lower level, so its step sizes cannot be chosen. "
            "Give alpha, beta, eta, gamma and c."
        )
    unit = worst.F / worst.phi
    if unit < 1e-8:
        unit = here.F_slope / max(here.phi_slope, 1e-8 * here.F_slope) if here.F_slope > 0 else 1.0
    first, envelope = (FIRST_CONVEX, ENVELOPE) if convex else (FIRST_NONCONVEX, ENVELOPE_NONCONVEX)
    return Tuning(worst, first * unit, 0, LAST * unit, envelope / max(worst.f_yy, 1e-12), 0, convex)


def _nonmonotone(problem: Bilevel, places: list[tuple[Tensors, Tensors]], around: Any, batch: Any) -> float:
    """Returns the greatest -<grad_y f(u) - grad_y f(v), u - v> / |u - v|^2 met between points around the places.

    It is 0 where none is positive. A local curvature sees one point; a lower level with many valleys is seen only from
    some distance.
    """
    greatest = 0.0
    for x, y in places:
        first = last = (y, evaluate(problem.f, x, y, batch, False, True).grad_y)
        for _ in range(PROBES // len(places)):
            u = around(y)
            new = (u, evaluate(problem.f, x, u, batch, False, True).grad_y)
            for point, gradient in (first, last):
                apart = subtract(new[0], point)
                square = float(dot(apart, apart))
                if square > 0:
                    greatest = max(greatest, -float(dot(subtract(new[1], gradient), apart)) / square)
            last = new
    return greatest


def _worst(found: list[Curvature]) -> Curvature:
    """Returns the largest of each, and the slopes of the first."""
    highest = Curvature(*(max(c for c in column if math.isfinite(c)) for column in zip(*found)))
    return highest._replace(answer=min(c.answer for c in found), F_slope=found[0].F_slope, phi_slope=found[0].phi_slope)


def sizes(tuning: Tuning, c_k: float, gamma: float) -> tuple[float, float, float]:
    """Returns (alpha, beta, eta): each .8 over the Lipschitz constant of its own block."""
    L = tuning.curvature
    answer = L.phi_xy**2 / (L.answer + 1 / gamma)
    bend_x = L.F_xx / c_k + max(L.f_xx, answer)
    return (
        SAFETY / max(bend_x, 1e-12),
        SAFETY / (L.F_yy / c_k + L.f_yy + 1 / gamma),
        SAFETY / (L.f_yy + 1 / gamma),
    )


def penalty(tuning: Tuning, k: int, p: float) -> float:
    """Returns c_k."""
    return tuning.c * (1 + (k - tuning.since) / CLOCK) ** p


def at_top(tuning: Tuning, c_k: float) -> bool:
    """Returns whether c_k is past the last rung, where it grows by the theory's schedule alone."""
    return c_k >= tuning.c_last


def measured_again(tuning: Tuning, problem: Bilevel, x: Tensors, y: Tensors, upper: Any, lower: Any, k: int) -> Tuning:
    """Returns the tuning with the curvatures of (x, y); where the lower level is not convex they never fall."""
    here = measure(problem, x, y, upper, lower, k, 6 if tuning.convex else 4)
    if not all(math.isfinite(value) for value in here):
        return tuning
    if not tuning.convex:
        here = _worst([here, tuning.curvature])._replace(rho=here.rho, answer=here.answer)
    return tuning._replace(curvature=here)


def climb(tuning: Tuning, k: int, c_k: float) -> Tuning:
    """Returns the constants of the next rung, from step k on: c doubled."""
    return tuning._replace(c=min(2 * c_k, tuning.c_last), since=k, rungs=tuning.rungs + 1)


def steeper(
    tuning: Tuning,
    problem: Bilevel,
    x: tuple[Tensors, Tensors, Tensors],
    theta: tuple[Tensors, Tensors, Tensors],
    y: Tensors,
    place: Tensors,
    c_k: float,
    alpha: float,
    upper: Any,
    lower: Any,
) -> Tuning | None:
    """Returns the tuning with longer curvatures if the directions of x or theta changed more than those in use allow.

    An iteration whose steps are too long swings along the steepest direction, so that its own secants find it.

    Args:
        tuning: What is in use.
        problem: F and f.
        x: Before the step, after it, and the direction d_x before.
        theta: Before its last step, after it, and grad_y f before.
        y: Before the step.
        place: The theta at which d_x was taken.
        c_k, alpha: Of the step.
        upper, lower: The step's batches. Four evaluations are made of them.
    """
    old, new, gradient = theta
    at_theta = evaluate(problem.at_theta, x[0], new, lower, False, True).grad_y
    bend_theta = _secant(old, new, gradient, at_theta)
    parts = [
        evaluate(smooth, x[1], point, batch, True, False).grad_x
        for smooth, point, batch in ((problem.F, y, upper), (problem.f, y, lower), (problem.at_theta, place, lower))
    ]
    d_x = add(subtract(parts[1], parts[2]), parts[0], 1 / c_k)
    if problem.g is not None:
        d_x = add(d_x, subtract(grad_x_of_g(problem.g, x[1], y), grad_x_of_g(problem.g, x[1], place)))
    bend_x = _secant(x[0], x[1], x[2], d_x)
    L = tuning.curvature
    if bend_theta <= 1.1 * L.f_yy and bend_x <= 1.1 * SAFETY / alpha:
        return None
    return tuning._replace(curvature=L._replace(f_yy=max(L.f_yy, 1.5 * bend_theta), f_xx=max(L.f_xx, 1.5 * bend_x)))


def _secant(old: Tensors, new: Tensors, before: Tensors, after: Tensors) -> float:
    """Returns |after - before| / |new - old|, 0 where nothing moved."""
    apart = float(norm(subtract(new, old)))
    value = float(norm(subtract(after, before))) / apart if apart > 0 else 0.0
    return value if math.isfinite(value) else 0.0


def explain(tuning: Tuning, gamma: float | None = None) -> str:
    """Returns in words what was chosen and why, and whether the theory's condition on gamma holds there.

    Args:
        tuning: The automatic constants: `state.tuning` of a method with any.
        gamma: What was given for gamma; None where it is automatic.
    """
    L = tuning.curvature
    gamma = tuning.gamma if gamma is None else gamma
    bound = math.inf if L.rho < 1e-6 * L.f_yy else 1 / (2 * L.rho)
    theory = (
        "the lower level is convex in y there, so every gamma is within the theory"
        if bound == math.inf
        else f"the theory asks for gamma < 1/(2 rho) = {bound:.3g} there, which "
        + ("holds" if gamma < bound else "does not hold")
    )
    return (
        f"curvatures F_xx {L.F_xx:.3g}, F_yy {L.F_yy:.3g}, f_xx {L.f_xx:.3g}, f_yy {L.f_yy:.3g}, "
        f"phi_xy {L.phi_xy:.3g}; "
        f"gamma {gamma:.3g}; c {tuning.c:.3g} after {tuning.rungs} doublings; {theory}"
    )
