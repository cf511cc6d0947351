"""The loop around a method: stopping, a check for NaN, a history; and what can be done with a solution afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import torch

from nas_moreau.bilevel.method import Info, Iterate, Method
from nas_moreau.bilevel.moreau_envelope import moreau
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.stationarity import lower_solution
from nas_moreau.bilevel.tensors import Tensors, add, largest, norm, scale, subtract

CHECK_EVERY = 10
"""Steps between two checks of the stopping rule; each waits for the device, as the check for NaN does every step."""

LEVELS = 4
"""Penalties c, 2c, 4c, ... from which the bias is extrapolated."""

Status = Literal["solved", "out-of-steps", "stopped", "diverged"]
"""How a run ended: the stopping rule was met; all steps were done; `watch` ended it; a number was not finite."""

Watch = Callable[[int, Tensors, Tensors, Any], bool | None]
MakeBatches = Callable[[int], tuple[Any, Any]]


@dataclass(frozen=True)
class Solution:
    """What `solve` found.

    Attributes:
        x, y: The last iterate; after a divergence the last finite one.
        state: The method's; pass it to `method.step` to continue.
        status: How the run ended, see `Status`.
        message: Why it ended, and how the automatic constants were chosen; for people, not for programs.
        history: Name -> list of floats, one for each step: F, f, f_theta, c, gamma, and the norms of `Info`.
        steps: Number of steps done, those of the bias removal included.
        movement: What the stopping rule compared with `tolerance` at the last check; NaN after a divergence.
        info: The last step's.
    """

    x: Tensors
    y: Tensors
    state: Any
    status: Status
    message: str
    history: dict[str, list[float]] = field(repr=False)
    steps: int
    movement: float
    info: Info | None = field(default=None, repr=False)

    @property
    def converged(self) -> bool:
        """Whether the stopping rule was met."""
        return self.status == "solved"


def solve(
    problem: Bilevel,
    x: Tensors,
    y: Tensors,
    method: Method | None = None,
    *,
    steps: int = 2000,
    batches: MakeBatches | None = None,
    polish: bool = False,
    debias: bool = False,
    tolerance: float = 1e-8,
    watch: Watch | None = None,
) -> Solution:
    """Runs a method on a bilevel problem; a divergence is reported in the solution, not raised.

    Example:
        >>> import torch
        >>> from nas_moreau.bilevel import Bilevel, solve
        >>> problem = Bilevel(
        ...     F=lambda x, y, batch: 0.5 * (x[0] - 1) ** 2 + 0.5 * y[0] ** 2,
        ...     f=lambda x, y, batch: 0.5 * y[0] ** 2 - x[0] * y[0],
        ... )
        >>> start = [torch.zeros((), dtype=torch.float64)]
        >>> solution = solve(problem, start, start, debias=True)
        >>> round(float(solution.x[0]), 5), round(float(solution.y[0]), 5)
        (0.5, 0.5)

    Args:
        problem: F, f, g and the projections.
        x: Start, list of tensors.
        y: Start, list of tensors.
        method: `moreau(...)` or another method; default `moreau()` with automatic constants.
        steps: Maximum number of steps; the removal of bias may take as many again at each of its four penalties.
        batches: k -> (upper_batch, lower_batch). With it there is no stopping rule: minibatch gradients never vanish.
        polish: Solve the lower level to 1e-10 at the final x, from y (see `polished`).
        debias: Remove the penalty's bias (see `debiased`).
        tolerance: Stop when the method's `residual` is below it; for `moreau` that is
            c_k (|dx|/alpha + |dy|/beta) + |dtheta|/eta, relative to 1 + |grad F|.
        watch: Called after every step with (k, x, y, info); True ends the run.

    Raises:
        TypeError: x or y is not a list of floating-point tensors.
        ValueError: `debias` with a method that has no penalty, or with `batches`; automatic constants where F or f is
            not finite at the start.
    """
    x, y = _checked("x", x), _checked("y", y)
    method = moreau() if method is None else method
    if debias and (method.at_penalty is None or batches is not None):
        raise ValueError("debias needs a method with a penalty c and no minibatches. Use moreau(...) and batches=None.")
    first = batches(0) if batches else (None, None)
    state = method.init(problem, x, y, *first)
    found = _run(problem, Iterate(x, y, state), method, steps, tolerance, batches, watch)
    if method.explain is not None:
        found = replace(found, message=f"{found.message} Automatic constants: {method.explain(found.state)}.")
    if debias:
        found = debiased(problem, found, method, steps)
    return polished(problem, found, first[1]) if polish else found


def polished(problem: Bilevel, solution: Solution, batch: Any = None) -> Solution:
    """Returns the solution with the lower level solved to 1e-10 at its x, starting from its y.

    Args:
        problem: The problem that was solved.
        solution: What `solve` returned; a diverged one is returned as it is.
        batch: On which f is evaluated.
    """
    if solution.status == "diverged":
        return solution
    lower = lower_solution(problem, solution.x, solution.y, batch)
    message = f"{solution.message} Polished: the lower level is solved to {lower.residual:.1e} at this x."
    return replace(solution, y=lower.point, message=message)


def debiased(problem: Bilevel, solution: Solution, method: Method, steps: int = 2000) -> Solution:
    """Returns the solution with the penalty's bias removed; the paper does not do this.

    At fixed c the method converges to the stationary point z(1/c) of the penalised problem, smooth in t = 1/c where the
    lower level's solution is; the bias is z(t) - z(0) = O(t). From z at c, 2c, 4c, 8c the polynomial of degree 3
    through them gives z(0) with error O(t^4) (Richardson). Where successive differences do not halve as that expansion
    says (a solution set, a kink), the point of the largest c is kept.

    Args:
        problem: The problem that was solved.
        solution: What `solve` returned; a diverged one is returned as it is.
        method: With which it was found; it has `at_penalty`.
        steps: Maximum number of steps at each of the penalties.
    """
    info = solution.info
    if solution.status == "diverged" or info is None or info.c is None:
        return solution
    assert method.at_penalty is not None
    lowest = info.c if info.c_last is None else info.c_last / 16
    levels, found, taken = [lowest * 2**i for i in range(LEVELS)], [], solution.steps
    count, x, y, state = len(solution.x), solution.x, solution.y, solution.state
    for c in levels:
        fixed = method.at_penalty(c)
        run = _run(problem, Iterate(x, y, fixed.restart(state, y)), fixed, steps, tolerance=1e-11)
        taken += run.steps
        if run.status == "diverged":
            message = f"{solution.message} The bias was not removed: at c = {c:.3g} the method diverged."
            return replace(solution, message=message, steps=taken)
        found.append([*run.x, *run.y])
        x, y, state = run.x, run.y, run.state
        if len(found) > 1:
            guess = add(found[-1], subtract(found[-1], found[-2]), 0.5)
            x, y = problem.onto_x(guess[:count]), guess[count:]
    point, sentence = _extrapolated(found, levels, count)
    message = f"{solution.message} {sentence}"
    return replace(solution, x=problem.onto_x(point[:count]), y=point[count:], message=message, steps=taken)


def _extrapolated(found: list[Tensors], levels: list[float], count: int) -> tuple[Tensors, str]:
    """Returns the limit of points found at growing penalties, and a sentence on how it was obtained.

    Args:
        found: One point for each penalty, x and y in one list.
        levels: The penalties.
        count: Number of tensors of x.
    """
    apart = [float(norm(subtract(after, before)[:count])) for before, after in pairwise(found)]
    if apart[-1] <= 1e-9 * (1 + float(norm(found[-1][:count]))):
        return found[-1], "There was no bias to remove."
    ratios = [after / before for before, after in pairwise(apart) if before > 0]
    if len(ratios) < 2 or not all(0.3 < ratio < 0.75 for ratio in ratios):
        return found[-1], f"The bias was not extrapolated: its differences fall by {ratios}, not by 1/2."
    total = [torch.zeros_like(t) for t in found[0]]
    for i, point in enumerate(found):
        weight = math.prod(levels[i] / (levels[i] - c) for j, c in enumerate(levels) if j != i)
        total = add(total, scale(point, weight))
    return total, (
        f"Bias removed: extrapolated from c = {levels[0]:.3g} to {levels[-1]:.3g}; the last step was {apart[-1]:.1e}."
    )


def _checked(name: str, given: Any) -> Tensors:
    """Returns the tensors, detached; raises TypeError where it is not a list of tensors that can be moved."""
    if not isinstance(given, (list, tuple)):
        fault = f"is a {type(given).__name__}"
    elif not given:
        fault = "is empty"
    else:
        wrong = [t for t in given if not isinstance(t, torch.Tensor) or not t.is_floating_point()]
        if not wrong:
            return [t.detach() for t in given]
        fault = f"holds {wrong[0].dtype if isinstance(wrong[0], torch.Tensor) else type(wrong[0]).__name__}"
    raise TypeError(f"{name} {fault}; give a list of floating-point tensors, such as [torch.zeros(3)].")


def _run(
    problem: Bilevel,
    at: Iterate,
    method: Method,
    steps: int,
    tolerance: float,
    batches: MakeBatches | None = None,
    watch: Watch | None = None,
) -> Solution:
    """Takes steps until the residual is small, `watch` returns True, a number is not finite, or `steps` are done."""
    rows: list[dict[str, Any]] = []
    status: Status = "out-of-steps"
    message = (
        f"Took {steps} steps on minibatches."
        if batches
        else f"Stopped after {steps} steps without meeting the tolerance {tolerance:.0e}."
    )
    movement, k, info = math.inf, -1, None
    for k in range(steps):
        batch = batches(k) if batches else (None, None)
        *point, info = method.step(problem, *at, *batch)
        after = Iterate(*point)
        rows.append({"F": info.F, "f": info.f, "f_theta": info.f_theta, "c": info.c, "gamma": info.gamma, **info.norms})
        check = (k + 1) % CHECK_EVERY == 0 or k + 1 == steps
        bad = _not_finite(info, after)
        if check and not bad:
            movement = float(method.residual(info, at, after))
            bad = [] if math.isfinite(movement) else ["the movement"]
        if bad:
            status, movement = "diverged", math.nan
            message = (
                f"Diverged at step {k + 1} (step sizes {info.alpha:.3g} and {info.beta:.3g}): {', '.join(bad[:3])} "
                "not finite; the last finite iterate is returned. Use smaller step sizes, or 'auto'."
            )
            break
        at = after
        if check and batches is None and movement <= tolerance and not info.climbs:
            status, message = "solved", f"Converged in {k + 1} steps: the movement is {movement:.1e}."
            break
        if watch is not None and watch(k, at.x, at.y, info):
            status, message = "stopped", f"Stopped by the caller after {k + 1} steps."
            break
    return Solution(*at, status, message, _history(rows), k + 1, movement, info)


def _not_finite(info: Info, after: Iterate) -> list[str]:
    """Returns the names of the terms of a step, and of the iterates it gave, that are not finite (a single wait)."""
    named: dict[str, Any] = {"F": info.F, "f": info.f, "f at theta": info.f_theta, **info.norms}
    named |= {"x": largest(after.x), "y": largest(after.y), "the method's state": largest(_tensors_in(after.state))}
    values = {name: found for name, found in named.items() if isinstance(found, torch.Tensor)}
    numbers = torch.stack(list(values.values())).tolist()
    return [name for name, number in zip(values, numbers) if not math.isfinite(number)]


def _tensors_in(state: Any) -> Tensors:
    """Returns the tensors of a nested NamedTuple state."""
    if isinstance(state, torch.Tensor):
        return [state]
    return [tensor for part in state for tensor in _tensors_in(part)] if isinstance(state, (tuple, list)) else []


def _history(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Returns one list for each name that has a value; a single transfer from the device for each."""
    history = {}
    for name in rows[0] if rows else ():
        column = [row[name] for row in rows]
        if isinstance(column[0], torch.Tensor):
            history[name] = torch.stack(column).tolist()
        elif column[0] is not None:
            history[name] = column
    return history
