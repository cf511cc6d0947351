"""What can be done with the point that a method found: its bias removed, the lower level solved, a certificate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch

from nas_moreau.bilevel.iteration import Limits, Watch, continued, iterate
from nas_moreau.bilevel.method import Iterate, Method
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.second_order.certify import certify
from nas_moreau.bilevel.solution import Solution, Status
from nas_moreau.bilevel.stationarity import lower_solution
from nas_moreau.bilevel.tensors import Tensors, add, norm, scale, subtract

LEVELS = 4
"""Penalties c, 2c, 4c, ... from which the bias is extrapolated."""

STILL = 1e-9
"""Relative difference between two penalties below which a point does not move."""

ENDED = ("diverged", "stopped", "refused")
"""Ways to end after which a solution is left as it is."""


def polished(problem: Bilevel, solution: Solution, batch: Any = None, watch: Watch | None = None) -> Solution:
    """Returns the solution with the lower level solved to 1e-10 at its x, starting from its y.

    Args:
        problem: The problem that was solved.
        solution: What `solve` returned; one that diverged or was stopped is returned as it is.
        batch: On which f is evaluated.
        watch: Called after every step with (k, x, y, None); True ends it.
    """
    if solution.status in ENDED:
        return solution
    reached = solution.y

    def stop(k: int, y: Tensors) -> bool:
        nonlocal reached
        reached = y
        return watch is not None and bool(watch(solution.steps + k, solution.x, y, None))

    try:
        lower = lower_solution(problem, solution.x, solution.y, batch, stop=stop)
    except KeyboardInterrupt:
        return replace(solution, y=reached, status="stopped", message=f"{solution.message} Stopped by Ctrl-C.")
    message = f"{solution.message} Polished: the lower level is solved to {lower.residual:.1e} at this x."
    status: Status = "stopped" if lower.stopped else solution.status
    return replace(solution, y=lower.point, status=status, message=message)


def debiased(
    problem: Bilevel, solution: Solution, method: Method, steps: int = 2000, watch: Watch | None = None
) -> Solution:
    """Returns the solution with the penalty's bias removed; the paper does not do this.

    At fixed c the method converges to the stationary point z(1/c) of the penalised problem, smooth in t = 1/c where the
    lower level's solution is; the bias is z(t) - z(0) = O(t). From z at c, 2c, 4c, 8c the polynomial of degree 3
    through them gives z(0) with error O(t^4) (Richardson). Where successive differences do not halve as that expansion
    says (a solution set, a kink), the point of the largest c is kept.

    Args:
        problem: The problem that was solved.
        solution: What `solve` returned; one that diverged or was stopped is returned as it is.
        method: With which it was found; it has `at_penalty`.
        steps: Maximum number of steps at each of the penalties.
        watch: Called after every step with (k, x, y, info); True ends it.
    """
    info = solution.info
    if solution.status in ENDED or info is None or info.c is None:
        return solution
    assert method.at_penalty is not None
    lowest = info.c if info.c_last is None else info.c_last / 16
    levels, found, whole = [lowest * 2**i for i in range(LEVELS)], [], solution
    count, x, y, state = len(solution.x), solution.x, solution.y, solution.state
    for c in levels:
        fixed = method.at_penalty(c)
        limits = Limits(steps, 1e-11, watch=watch, first=whole.steps)
        run = iterate(problem, Iterate(x, y, fixed.restart(state, y)), fixed, limits)
        whole = continued(whole, run)
        if run.status == "diverged":
            message = f"{solution.message} The bias was not removed: at c = {c:.3g} the method diverged."
            return replace(solution, message=message, steps=whole.steps, history=whole.history)
        if run.status == "stopped":
            return replace(whole, message=f"{solution.message} {run.message}")
        found.append([*run.x, *run.y])
        x, y, state = run.x, run.y, run.state
        if len(found) > 1:
            guess = add(found[-1], subtract(found[-1], found[-2]), 0.5)
            x, y = problem.onto_x(guess[:count]), guess[count:]
    point, bias, sentence = _extrapolated(found, levels, count)
    certificate = solution.certificate._replace(bias=bias)
    return replace(
        whole,
        x=problem.onto_x(point[:count]),
        y=point[count:],
        state=solution.state,
        info=info,
        status="biased" if math.isfinite(bias) else "out-of-steps",
        message=f"{solution.message} {sentence}",
        movement=solution.movement,
        certificate=certificate,
    )


def _extrapolated(found: list[Tensors], levels: list[float], count: int) -> tuple[Tensors, float, str]:
    """Returns the limit of points found at growing penalties, its estimated relative error, and how it was obtained.

    Args:
        found: One point for each penalty, x and y in one list.
        levels: The penalties.
        count: Number of tensors of x.
    """
    size = 1 + float(norm(found[-1][:count]))
    moved = [subtract(after, before) for before, after in pairwise(found)]
    of_x = slice(count) if float(norm(moved[-1][:count])) > STILL * size else slice(None)  # x at rest on its bounds?
    apart = [float(norm(difference[of_x])) for difference in moved]
    if apart[-1] <= STILL * (1 + float(norm(found[-1][of_x]))):
        return found[-1], apart[-1] / size, "There was no bias to remove."
    ratios = [after / before for before, after in pairwise(apart) if before > 0]
    if len(ratios) < 2 or not all(0.3 < ratio < 0.75 for ratio in ratios):
        sentence = f"The bias was not extrapolated: its differences fall by {ratios}, not by 1/2."
        return found[-1], math.nan, sentence
    total, part = _limit(found, levels), _limit(found[1:], levels[1:])
    bias = float(norm(subtract(total, part)[:count])) / size
    return (
        total,
        bias,
        (f"Bias removed: extrapolated from c = {levels[0]:.3g} to {levels[-1]:.3g}; last step {apart[-1]:.1e}."),
    )


def _limit(found: list[Tensors], levels: list[float]) -> Tensors:
    """Returns the value at 1/c = 0 of the polynomial in 1/c through the points."""
    total = [torch.zeros_like(t) for t in found[0]]
    for i, point in enumerate(found):
        weight = math.prod(levels[i] / (levels[i] - c) for j, c in enumerate(levels) if j != i)
        total = add(total, scale(point, weight))
    return total


def judged(problem: Bilevel, solution: Solution, tolerance: float, spent: Callable[[], int]) -> Solution:
    """Returns the solution with a certificate where one can be had cheaply, and the status that follows from it.

    Args:
        problem: The problem that was solved, without minibatches.
        solution: What a method found.
        tolerance: Of the certificate.
        spent: Returns the evaluations so far; the certificate costs at most about as many.
    """
    if solution.status in ENDED:
        return solution
    try:
        found, _ = certify(problem, solution.x, solution.y, budget=2000 + spent())
    except KeyboardInterrupt:
        message = f"{solution.message} Stopped by Ctrl-C before the certificate."
        return replace(solution, status="stopped", message=message)
    if math.isnan(found.bias):  # the extrapolation has its own estimate
        found = found._replace(bias=solution.certificate.bias)
    eps = max(torch.finfo(t.dtype).eps for t in [*solution.x, *solution.y])
    status = solution.status
    if found.holds(max(tolerance, 30 * eps)):
        status = "solved"
    elif found.is_saddle and status == "biased":
        status = "not-minimal"
    known = math.isfinite(found.bias) and status != "solved"
    bias = f" The estimated error of x is {found.bias:.1e}." if known else ""
    solved = "Solved: the certificate holds. " if status == "solved" else ""
    return replace(solution, status=status, certificate=found, message=f"{solved}{solution.message}{bias}")
