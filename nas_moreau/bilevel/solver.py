"""The loop around a method: stopping, a guard against NaN, a history, removal of the penalty's bias, polish."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from nas_moreau.bilevel.contract import Info, Method
from nas_moreau.bilevel.method import moreau
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.stationarity import lower_solution
from nas_moreau.bilevel.tensors import Tensors, add, norm, scale, subtract

LOOK_EVERY = 10
"""Steps between two looks at the stopping rule; each waits for the device once, as does the guard at every step."""


@dataclass(frozen=True)
class Solution:
    """What `solve` found.

    Attributes:
        x, y: The last iterate; the last finite one after a divergence.
        state: Of the method; pass it to `method.step` to go on.
        converged: Whether the stopping rule was met.
        message: One sentence or more: why it stopped, and how the automatic constants were chosen.
        history: Name -> list of floats, one a step ("F", "f", "c", and the norms of `Info`).
        steps: Taken, those of the bias removal included.
        movement: What the stopping rule compares with `tolerance`, at the last look.
    """

    x: Tensors
    y: Tensors
    state: Any
    converged: bool
    message: str
    history: dict[str, list[float]]
    steps: int
    movement: float


def solve(
    problem: Bilevel,
    x: Tensors,
    y: Tensors,
    method: Method | None = None,
    *,
    steps: int = 2000,
    batches: Callable[[int], tuple[Any, Any]] | None = None,
    polish: bool = False,
    debias: bool = False,
    tolerance: float = 1e-8,
    watch: Callable[[int, Tensors, Tensors, Any], bool | None] | None = None,
) -> Solution:
    """Runs a method on a bilevel problem and says how it ended; divergence is reported, not raised.

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
        method: `moreau(...)` or a rival; default `moreau()` with automatic constants.
        steps: At most so many; the removal of bias has as many again.
        batches: k -> (upper_batch, lower_batch). With it there is no stopping rule: minibatch gradients never vanish.
        polish: Solve the lower level to 1e-10 at the final x, from y.
        debias: Remove the penalty's bias: solve at four values of c and extrapolate to 1/c = 0 (see `remove_bias`).
        tolerance: Stop when c_k (|dx|/alpha + |dy|/beta) + |dtheta|/eta, relative to 1 + |grad F|, is below it.
        watch: Called after every step with (k, x, y, info); True ends the run.

    Raises:
        TypeError: x or y is no list of floating-point tensors.
        ValueError: `debias` with a method that has no penalty, or with `batches`; automatic constants where F or f is
            not finite at the start.
    """
    x, y = _checked("x", x), _checked("y", y)
    method = moreau() if method is None else method
    if debias and (method.at_penalty is None or batches is not None):
        raise ValueError("debias needs a method with a penalty c and no minibatches. Use moreau(...) and batches=None.")
    first = batches(0) if batches else (None, None)
    state = method.init(problem, x, y, *first)
    run = _run(problem, x, y, state, method, steps, batches, tolerance, watch)
    x, y, state, message, taken = run.x, run.y, run.state, run.message, run.steps
    converged, movement = run.converged, run.movement
    if debias and math.isfinite(movement):
        extrapolated, words, more = remove_bias(problem, x, y, state, method, steps, run.history["c"][-1])
        x, y, taken = extrapolated[0], extrapolated[1], taken + more
        message = f"{message} {words}"
    if polish and math.isfinite(movement):
        lower = lower_solution(problem, x, y, first[1])
        y = lower.point
        message += f" Polished: the lower level is solved to {lower.residual:.1e} at this x."
    if method.automatic is not None:
        message += f" Automatic constants: {method.automatic.explain(state.tuning)}."
    return Solution(x, y, state, converged, message, run.history, taken, movement)


def _checked(name: str, given: Any) -> Tensors:
    """Returns the tensors, detached; raises TypeError where it is no list of tensors that can be moved."""
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
    x: Tensors,
    y: Tensors,
    state: Any,
    method: Method,
    steps: int,
    batches: Callable[[int], tuple[Any, Any]] | None,
    tolerance: float,
    watch: Callable[[int, Tensors, Tensors, Any], bool | None] | None = None,
) -> Solution:
    """The loop."""
    rows: list[dict[str, Any]] = []
    movement, converged, k = math.inf, False, -1
    message = (
        f"Took {steps} steps on minibatches."
        if batches
        else f"Stopped after {steps} steps without meeting the tolerance {tolerance:.0e}."
    )
    for k in range(steps):
        batch = batches(k) if batches else (None, None)
        new_x, new_y, new_state, info = method.step(problem, x, y, state, *batch)
        rows.append({"F": info.F, "f": info.f, "f_theta": info.f_theta, "c": info.c, **info.norms})
        look = (k + 1) % LOOK_EVERY == 0 or k + 1 == steps
        bad = _not_finite(info, new_x, new_y, new_state)
        if look and not bad:
            movement = _movement(x, y, state, new_x, new_y, new_state, info)
            bad = [] if math.isfinite(movement) else ["the movement"]
        if bad:
            message = (
                f"Diverged at step {k + 1} (step sizes {info.alpha:.3g} and {info.beta:.3g}): {', '.join(bad[:3])} "
                "not finite; the last finite iterate is returned. Use smaller step sizes, or 'auto'."
            )
            return Solution(x, y, state, False, message, _history(rows), k + 1, math.nan)
        x, y, state = new_x, new_y, new_state
        if look:
            last = _last_penalty(method, state)
            on_the_way = last is not None and info.c < last
            if batches is None and movement <= tolerance and not on_the_way:
                converged, message = True, f"Converged in {k + 1} steps: the movement is {movement:.1e}."
                break
        if watch is not None and watch(k, x, y, info):
            message = f"Stopped by the caller after {k + 1} steps."
            break
    return Solution(x, y, state, converged, message, _history(rows), k + 1, movement)


def _last_penalty(method: Method, state: Any) -> float | None:
    """Returns the c up to which an automatic c climbs; None where it does not climb."""
    return None if method.automatic is None else method.automatic.last_penalty(state.tuning)


def _not_finite(info: Info, x: Tensors, y: Tensors, state: Any) -> list[str]:
    """Returns the names of the terms of a step, and of the iterates it gave, that are not finite (a single wait)."""
    named = {"F": info.F, "f": info.f, "f at theta": info.f_theta, **info.norms}
    named |= {"x": _largest(x), "y": _largest(y), "theta": _largest(getattr(state, "theta", []))}
    values = {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
    numbers = torch.stack(list(values.values())).tolist()
    return [name for name, number in zip(values, numbers) if not math.isfinite(number)]


def _largest(tensors: Tensors) -> torch.Tensor | None:
    """Returns the largest absolute value, NaN where there is one; None of nothing."""
    filled = [t for t in tensors if t.numel()]
    if len(filled) < 2:
        return torch.linalg.vector_norm(filled[0], math.inf) if filled else None
    return torch.stack(torch._foreach_norm(filled, math.inf)).max()


def _movement(x: Tensors, y: Tensors, state: Any, new_x: Tensors, new_y: Tensors, new_state: Any, info: Info) -> float:
    """Returns the stopping rule's left side; for methods without a penalty c is 1."""
    c = info.c or 1.0
    moved = norm(subtract(new_x, x)) / info.alpha + norm(subtract(new_y, y)) / info.beta
    total = c * moved
    if info.eta:
        total = total + norm(subtract(new_state.theta, state.theta)) / info.eta
    if "F_y_over_c" in info.norms:
        total = total / (1 + c * (info.norms["F_x_over_c"] + info.norms["F_y_over_c"]))
    return float(total)


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


def remove_bias(
    problem: Bilevel, x: Tensors, y: Tensors, state: Any, method: Method, steps: int, c_k: float
) -> tuple[tuple[Tensors, Tensors], str, int]:
    """Returns (x, y) with the penalty's bias removed, a sentence on how, and the steps it took.

    At fixed c the method converges to the stationary point z(1/c) of the penalised problem, smooth in t = 1/c where the
    lower level's solution is; the bias is z(t) - z(0) = O(t). From z at c, 2c, 4c, 8c the polynomial of degree 3
    through them gives z(0) with error O(t^4) (Richardson). Where successive differences do not halve as that expansion
    says (a solution set, a kink), the point of the largest c is kept. The paper lacks this.
    """
    assert method.at_penalty is not None
    last = _last_penalty(method, state)
    lowest = c_k if last is None else last / 16
    if method.automatic is not None:
        state = state._replace(tuning=method.automatic.hold(state.tuning))
    levels, found, taken = [lowest * 2**i for i in range(4)], [], 0
    start_x, start_y = x, y
    for c in levels:
        fixed = method.at_penalty(c)
        state = state._replace(theta=[t.clone() for t in start_y])
        run = _run(problem, start_x, start_y, state, fixed, steps, None, 1e-11)
        taken += run.steps
        if not math.isfinite(run.movement):
            return (x, y), f"The bias was not removed: at c = {c:.3g} the method diverged.", taken
        found.append([*run.x, *run.y])
        start_x, start_y, state = run.x, run.y, run.state
        if len(found) > 1:
            guess = add(found[-1], subtract(found[-1], found[-2]), 0.5)
            start_x, start_y = problem.onto_x(guess[: len(x)]), guess[len(x) :]
    apart = [float(norm(subtract(after, before)[: len(x)])) for before, after in pairwise(found)]
    scale_x = 1 + float(norm(found[-1][: len(x)]))
    if apart[-1] <= 1e-9 * scale_x:
        return (found[-1][: len(x)], found[-1][len(x) :]), "There was no bias to remove.", taken
    ratios = [after / before for before, after in pairwise(apart) if before > 0]
    if len(ratios) < 2 or not all(0.3 < ratio < 0.75 for ratio in ratios):
        words = f"The bias was not extrapolated: its differences fall by {ratios}, not by 1/2."
        return (found[-1][: len(x)], found[-1][len(x) :]), words, taken
    total = [torch.zeros_like(t) for t in found[0]]
    for i, point in enumerate(found):
        weight = math.prod(levels[i] / (levels[i] - c) for j, c in enumerate(levels) if j != i)
        total = add(total, scale(point, weight))
    words = (
        f"Bias removed: extrapolated from c = {levels[0]:.3g} to {levels[-1]:.3g}; the last step was {apart[-1]:.1e}."
    )
    return (problem.onto_x(total[: len(x)]), total[len(x) :]), words, taken
