"""The loop around a method: stopping, a check for numbers that are not finite, a history."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from nas_moreau.bilevel.method import Info, Iterate, Method
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.solution import Solution, Status
from nas_moreau.bilevel.tensors import Tensors, largest

CHECK_EVERY = 10
"""Steps between two checks of the stopping rule; each waits for the device, as the check for NaN does every step."""

Watch = Callable[[int, Tensors, Tensors, Any], "bool | None"]
MakeBatches = Callable[[int], tuple[Any, Any]]


class Limits(NamedTuple):
    """When a run ends.

    Attributes:
        steps: Maximum number of steps.
        tolerance: On the method's `residual`.
        batches: k -> (upper batch, lower batch); with it there is no stopping rule.
        watch: Called after every step with (k, x, y, info); True ends the run.
        first: Number of the first step.
    """

    steps: int
    tolerance: float
    batches: MakeBatches | None = None
    watch: Watch | None = None
    first: int = 0


def iterate(problem: Bilevel, begin: Iterate, method: Method, limits: Limits) -> Solution:
    """Takes steps until the residual is small, `watch` returns True or Ctrl-C, a number is not finite, or all are done.

    The status "biased" stands for a method that has settled; what its point is remains to be certified.
    """
    rows: list[dict[str, Any]] = []
    status: Status = "out-of-steps"
    info: Info | None = None
    at, movement = begin, math.inf
    end = limits.first + limits.steps
    message = (
        f"Took {limits.steps} steps on minibatches."
        if limits.batches
        else f"Took {limits.steps} steps; the movement did not fall below the tolerance {limits.tolerance:.0e}."
    )
    try:
        for k in range(limits.first, end):
            batch = limits.batches(k) if limits.batches else (None, None)
            *point, new = method.step(problem, *at, *batch)
            after = Iterate(*point)
            rows.append({"F": new.F, "f": new.f, "f_theta": new.f_theta, "c": new.c, "gamma": new.gamma, **new.norms})
            check = (k + 1) % CHECK_EVERY == 0 or k + 1 == end
            bad = _not_finite(new, after)
            if bad and not check and _taken_back(at, after):
                bad = []  # the method has noticed by itself that the step was too long
            if check and not bad:
                movement = float(method.residual(new, at, after))
                bad = [] if math.isfinite(movement) else ["the movement"]
            if bad:
                status, movement, info = "diverged", math.nan, new
                message = (
                    f"Diverged at step {k + 1} (step sizes {new.alpha:.3g} and {new.beta:.3g}): {', '.join(bad[:3])} "
                    "not finite; the last finite iterate is returned. Use smaller step sizes, or 'auto'."
                )
                break
            at, info = after, new
            if check and limits.batches is None and movement <= limits.tolerance and not new.climbs:
                status, message = "biased", f"Settled in {k + 1} steps: the movement is {movement:.1e}."
                break
            if limits.watch is not None and limits.watch(k, at.x, at.y, new):
                status, message = "stopped", f"Stopped by the caller after {k + 1} steps."
                break
    except KeyboardInterrupt:
        status, message = "stopped", f"Stopped by Ctrl-C after {len(rows)} steps."
    return Solution(at.x, at.y, at.state, status, message, _history(rows), len(rows), movement, info)


def continued(before: Solution, after: Solution) -> Solution:
    """Returns a solution that counts the steps of both and has both histories, one after the other."""
    names = before.history.keys() & after.history.keys() or after.history.keys()
    history = {name: [*before.history.get(name, ()), *after.history[name]] for name in after.history if name in names}
    return replace(after, steps=before.steps + after.steps, history=history)


def _not_finite(info: Info, after: Iterate) -> list[str]:
    """Returns the names of the terms of a step, and of the iterates it gave, that are not finite (a single wait)."""
    named: dict[str, Any] = {"F": info.F, "f": info.f, "f at theta": info.f_theta, **info.norms}
    named |= {"x": largest(after.x), "y": largest(after.y), "the method's state": largest(tensors_in(after.state))}
    values = {name: found for name, found in named.items() if isinstance(found, torch.Tensor)}
    numbers = torch.stack(list(values.values())).tolist()
    return [name for name, number in zip(values, numbers) if not math.isfinite(number)]


def _taken_back(before: Iterate, after: Iterate) -> bool:
    """Whether x and y are where they were before the step."""
    return all(torch.equal(s, t) for s, t in zip([*before.x, *before.y], [*after.x, *after.y]))


def tensors_in(state: Any) -> Tensors:
    """Returns the tensors of a nested state."""
    if isinstance(state, torch.Tensor):
        return [state]
    return [tensor for part in state for tensor in tensors_in(part)] if isinstance(state, (tuple, list)) else []


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
