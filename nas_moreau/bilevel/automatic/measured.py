"""The five constants of the method, found from the problem: alpha, beta, eta, gamma and c where they are "auto".

Everything follows from block-wise curvatures L (curvature.py), so F and f need not be twice differentiable:

    eta   = .8 / (L_f^yy + 1/gamma)
    beta  = .8 / (L_F^yy / c_k + L_f^yy + 1/gamma)
    alpha = .8 / (L_F^xx / c_k + max(L_f^xx, (L_phi^xy)^2 / (m + 1/gamma)))

each .8 over the Lipschitz constant of its direction, (9), (12) and (10). The last term is how theta* answers to x, with
m = L_f^yy, or with g (which hides the direction of that answer) the least curvature of f(x, .). Then, depending on
whether the lower level was found to be convex in y:

              convex            not
    gamma     10 / L_f^yy       200 / L_f^yy
    first c   20 L_F / L_phi    .5 L_F / L_phi

gamma: v_gamma is close to the value function (the bias of the penalty is (1 + 1/(gamma L))/c), and 1/gamma still
anchors theta. Near a maximum of a nonconvex lower level -v_gamma pushes y away from the valley that theta found, by
|y - theta|/gamma; hence 200. First c: where there may be many basins, F/c has to bend more than phi - v_gamma can, so
that the penalised problem has one basin, that of F; with one basin below there is none to miss, and y should stay near
the lower level's solution. Where F has no curvature the ratio of the slopes takes the place of L_F / L_phi.

From there c climbs a ladder: whenever the iteration has settled (its movement is below a tenth of the push of F/c) or
500 steps have passed, c_k is doubled, theta is computed again from y, and the curvatures are measured again, until c_k
is 150 L_F / L_phi. On every rung c_k = c (1 + (k - k_rung)/100)^p, the theory's schedule on a slower clock. Following
the minimiser from small c is what finds the right basin where a fixed constant does not.

Where the lower level is convex the curvatures in use are those at the present iterate, measured on every rung; where it
is not, the largest found, also far from the iterates. In the first steps, and every tenth step after that, the secants
of the steps of x and theta are checked: a step that was too long is taken back, and the next ones are shorter.

The theory asks for gamma < 1/(2 rho), with rho the weak convexity of f(x, .). At first gamma may be larger (below that
bound a maximum of the lower level is a feasible point, and attracts); `explain` says whether the bound holds at the
present iterate.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from nas_moreau.bilevel.automatic.curvature import Curvature, measure, nonmonotone, secant, worst
from nas_moreau.bilevel.automatic.rule import AutoRule, Sizes
from nas_moreau.bilevel.method import NO_BATCHES, Batches, Iterate
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.tensors import (
    Tensors,
    add,
    grad_x,
    grad_x_of_g,
    grad_y,
    norm,
    random_like,
    subtract,
    value_and_grads,
)

if TYPE_CHECKING:
    from nas_moreau.bilevel.moreau_envelope import StepRecord

# No theory gives the constants below; docs/bilevel.md has what they reach on the paper's problems.

FIRST_CONVEX, FIRST_NONCONVEX, LAST = 20.0, 0.5, 150.0
"""c on the first rung, for a lower level that is convex in y and for others, and on the last; units: L_F / L_phi."""

ON_THE_WAY = 4
"""Number of the places at which curvatures are measured first that lie between the start and the minimiser of F."""

SAFETY = 0.8
"""A step size times the Lipschitz constant of its direction; gradient descent lowers its objective below 2."""

ENVELOPE, ENVELOPE_NONCONVEX = 10.0, 200.0
"""gamma in units of 1 / L_f^yy, for a lower level that is convex in y and for others."""

CLOCK = 100
"""Steps in which (k+1)^p of the theory advances by one; faster growth freezes x before it has arrived."""

BACK = 30.0
"""Factor on a curvature after a step to where a gradient is not finite."""

CHECK_EVERY = 10
"""Steps between two checks of whether the iteration has settled, and half-way between them of its secants."""

LONGEST = 500
"""Steps after which the next rung is climbed even if the iteration has not settled."""


class Tuning(NamedTuple):
    """The constants in use, and what they are derived from.

    Attributes:
        curvature: The curvatures in use.
        gamma: Parameter of the envelope, given or chosen.
        c, since: The penalty of this rung, given or chosen, and the step at which it was set.
        c_last: The penalty of the last rung; None where c is given.
        rungs: Number of rungs climbed.
        convex: Whether the lower level was found to be convex in y.
    """

    curvature: Curvature
    gamma: float
    c: float
    since: int
    c_last: float | None
    rungs: int
    convex: bool


def begin(
    problem: Bilevel,
    x: Tensors,
    y: Tensors,
    batches: Batches = NO_BATCHES,
    c: float | None = None,
    gamma: float | None = None,
) -> Tuning:
    """Returns the constants of the first step, from curvatures at the start, near F's minimiser, and around both.

    Args:
        problem: F, f, g and the projections.
        x, y: The start.
        batches: On which F and f are evaluated.
        c, gamma: None where they are not given.

    Raises:
        ValueError: F, f or a gradient is not finite, or the lower level has no curvature.
    """
    here = measure(problem, x, y, batches, 0, 6)
    if not all(math.isfinite(value) for value in here):
        raise ValueError("F, f or a gradient of them is not finite at the start. Start elsewhere, or correct F and f.")
    far_x, far_y = x, y
    for _ in range(20 if here.F > 0 else 0):
        found = value_and_grads(problem.F, far_x, far_y, batches.upper)
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

    # between the start and the minimiser of F, with all of y moved by the same amount, and with each element moved on
    # its own: curvatures of many equal terms add up only where the terms are in step
    places = [between(0.25), between(0.5), between(0.75), (far_x, far_y), shifted(radius / 2), shifted(-radius / 2)]
    places += [(problem.onto_x(around(u)), around(v)) for u, v in ((x, y), (far_x, far_y))]
    measured = [here, *(measure(problem, u, v, batches, 1 + i, 3) for i, (u, v) in enumerate(places))]
    rho = nonmonotone(problem, [(x, y), (far_x, far_y)], around, batches.lower)
    rho = max(rho, worst(measured).rho)
    # a convex lower level has no valley to be missed, so curvatures far from the iterates need not shorten the steps
    convex = rho < 0.01 * worst(measured).f_yy
    L = worst(measured[: 1 + ON_THE_WAY] if convex else measured)._replace(rho=rho)
    unbent = L.f_yy == 0 and problem.g is None and problem.project_y is None
    if not L.phi > 0 or unbent:
        raise ValueError(
            "No curvature was found in the lower level, so its step sizes cannot be chosen. "
            "Give alpha, beta, eta, gamma and c."
        )
    unit = L.F / L.phi
    if unit < 1e-8:
        unit = here.F_slope / max(here.phi_slope, 1e-8 * here.F_slope) if here.F_slope > 0 else 1.0
    first, envelope = (FIRST_CONVEX, ENVELOPE) if convex else (FIRST_NONCONVEX, ENVELOPE_NONCONVEX)
    gamma = envelope / max(L.f_yy, 1e-12) if gamma is None else gamma
    last = LAST * unit if c is None else None
    return Tuning(L, gamma, first * unit if c is None else c, 0, last, 0, convex)


def sizes(tuning: Tuning, c_k: float, gamma: float) -> Sizes:
    """Returns alpha, beta and eta: each .8 over the Lipschitz constant of its block."""
    L = tuning.curvature
    answer = L.phi_xy**2 / (L.answer + 1 / gamma)
    bend_x = L.F_xx / c_k + max(L.f_xx, answer)
    return Sizes(
        SAFETY / max(bend_x, 1e-12),
        SAFETY / (L.F_yy / c_k + L.f_yy + 1 / gamma),
        SAFETY / (L.f_yy + 1 / gamma),
    )


def penalty(tuning: Tuning, k: int, p: float) -> float:
    """Returns c_k."""
    return tuning.c * (1 + (k - tuning.since) / CLOCK) ** p


def after(problem: Bilevel, taken: StepRecord) -> Iterate:
    """Returns where to continue from after a step: where it led to, or before it if it was too long.

    In the first steps, and later half-way between two checks of whether the iteration has settled, the secants of the
    step are checked; a step that was too long is taken back. Where the iteration has settled c climbs.
    """
    state = taken.before.state
    tuning: Tuning = state.tuning
    new_x, new_y, new = taken.after
    k = new.k
    if k < CHECK_EVERY or k % CHECK_EVERY == CHECK_EVERY // 2:
        shorter = _shorter(problem, taken)
        if shorter is not None:
            return taken.before._replace(state=state._replace(k=k, tuning=shorter))
    last = tuning.c_last
    if last is None or taken.used.c >= last or k % CHECK_EVERY:
        return taken.after
    if k - tuning.since >= LONGEST or _settled(taken):
        tuning = _measured_again(tuning, problem, new_x, new_y, taken.batches, k)
        tuning = tuning._replace(c=min(2 * taken.used.c, last), since=k, rungs=tuning.rungs + 1)
        near = _near_prox(problem, taken)
        new = new._replace(theta=near, theta_rule=taken.restart(near), tuning=tuning)
    return Iterate(new_x, new_y, new)


def _shorter(problem: Bilevel, taken: StepRecord) -> Tuning | None:
    """Returns larger curvatures if the directions of x or theta changed more in the step than those in use allow.

    An iteration whose steps are too long swings along the steepest direction, so that its own secants find it. Four
    evaluations.
    """
    assert taken.grad_theta is not None
    (x, y, state), new_x, theta, place = taken.before, taken.after.x, taken.after.state.theta, taken.theta_of_x
    upper, lower = taken.batches
    at_theta = grad_y(problem.at_theta, x, theta, lower)
    bend_theta = secant(taken.last_theta, theta, taken.grad_theta, at_theta)
    parts = [
        grad_x(smooth, new_x, point, batch)
        for smooth, point, batch in ((problem.F, y, upper), (problem.f, y, lower), (problem.at_theta, place, lower))
    ]
    d_x = add(subtract(parts[1], parts[2]), parts[0], 1 / taken.used.c)
    if problem.g is not None:
        d_x = add(d_x, subtract(grad_x_of_g(problem.g, new_x, y), grad_x_of_g(problem.g, new_x, place)))
    bend_x = secant(x, new_x, taken.d_x, d_x)
    tuning: Tuning = state.tuning
    L = tuning.curvature
    if bend_theta <= 1.1 * L.f_yy and bend_x <= 1.1 * SAFETY / taken.used.alpha:
        return None
    # a step that left the domain says nothing but that it was too long
    bend_theta = bend_theta if math.isfinite(bend_theta) else BACK * L.f_yy
    bend_x = bend_x if math.isfinite(bend_x) else BACK * SAFETY / taken.used.alpha
    return tuning._replace(curvature=L._replace(f_yy=max(L.f_yy, 1.5 * bend_theta), f_xx=max(L.f_xx, 1.5 * bend_x)))


def _settled(taken: StepRecord) -> bool:
    """Returns whether the step moved each of x, y, theta by less than a tenth of what pushes them.

    That is F/c for y and theta, and for x also the effect of y - theta through the cross curvature.
    """
    before, after, used = taken.before, taken.after, taken.used
    size, cross = taken.norms, before.state.tuning.curvature.phi_xy
    moved_x = norm(subtract(after.x, before.x)) / used.alpha
    moved_y = norm(subtract(after.y, before.y)) / used.beta
    moved_y = moved_y + norm(subtract(after.state.theta, before.state.theta)) / used.eta
    calm_x = moved_x <= 0.1 * (size["F_x_over_c"] + cross * size["distance"])
    return bool(calm_x & (moved_y <= 0.1 * size["F_y_over_c"]))


def _measured_again(tuning: Tuning, problem: Bilevel, x: Tensors, y: Tensors, batches: Batches, k: int) -> Tuning:
    """Returns the tuning with the curvatures of (x, y); where the lower level is not convex they never fall."""
    here = measure(problem, x, y, batches, k, 6 if tuning.convex else 4)
    if not all(math.isfinite(value) for value in here):
        return tuning
    if not tuning.convex:
        here = worst([here, tuning.curvature])._replace(rho=here.rho, answer=here.answer)
    return tuning._replace(curvature=here)


def _near_prox(problem: Bilevel, taken: StepRecord) -> Tensors:
    """Returns theta after steps (9) from y with x and y fixed, until they are short, 50 at most.

    theta may have stayed in a valley that y has left long ago. It must have arrived before x moves again: at theta
    = y the difference in (10) vanishes, and x would be driven by F alone.
    """
    x, y, _ = taken.after
    used, tolerance, theta = taken.used, 0.1 * float(taken.norms["F_y_over_c"]), y
    for k in range(50):
        found = grad_y(problem.at_theta, x, theta, taken.batches.lower)
        moved = add(theta, add(found, subtract(theta, y), 1 / used.gamma), -used.eta)
        moved = problem.prox_y(x, moved, used.eta)
        length = float(norm(subtract(moved, theta))) / used.eta
        theta = moved
        if length <= tolerance and k >= 5:
            break
    return theta


def explain(tuning: Tuning) -> str:
    """Returns a sentence on the constants in use, and on whether the theory's condition on gamma holds.

    Args:
        tuning: The automatic constants: `state.tuning` of a method that has some.
    """
    L = tuning.curvature
    bound = math.inf if L.rho < 1e-6 * L.f_yy else 1 / (2 * L.rho)
    theory = (
        "the lower level is convex in y there, so every gamma is within the theory"
        if bound == math.inf
        else f"the theory asks for gamma < 1/(2 rho) = {bound:.3g} there, which "
        + ("holds" if tuning.gamma < bound else "does not hold")
    )
    climbed = "as given" if tuning.c_last is None else f"after {tuning.rungs} doublings"
    return (
        f"curvatures F_xx {L.F_xx:.3g}, F_yy {L.F_yy:.3g}, f_xx {L.f_xx:.3g}, f_yy {L.f_yy:.3g}, "
        f"phi_xy {L.phi_xy:.3g}; gamma {tuning.gamma:.3g}; c {tuning.c:.3g} {climbed}; {theory}"
    )


MEASURED = AutoRule(
    begin=begin,
    penalty=penalty,
    sizes=sizes,
    after=after,
    last_penalty=lambda tuning: tuning.c_last,
    hold=lambda tuning: tuning._replace(c_last=None),
    explain=explain,
)
"""The rule for small problems, where x moves along its direction: curvatures measured over a region."""
