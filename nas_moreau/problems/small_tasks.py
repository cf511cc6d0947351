"""The solve stage: a bilevel problem with known answer, by any of the methods."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from nas_moreau.bilevel import lower_solution, residual, solve
from nas_moreau.errors import InputError, did_you_mean
from nas_moreau.problems.group_lasso import group_lasso
from nas_moreau.problems.methods import METHODS, MOREAU, method_for
from nas_moreau.problems.synthetic import Case, lasso, merely_convex, quadratic, sine
from nas_moreau.training.device import peak_memory_bytes


class Task(NamedTuple):
    """What the problem is, the default n and number of steps, and the function (n, seed) -> case."""

    what: str
    n: int
    steps: int
    build: Callable[[int, int], Case]


TASKS: dict[str, Task] = {
    "sine": Task("(19): nonconvex lower level with many valleys; n = length of y", 100, 1000, lambda n, s: sine(n)),
    "quadratic": Task("(77): strongly convex; n = length of x and y", 100, 1000, lambda n, s: quadratic(n)),
    "merely-convex": Task(
        "(18): the lower level has many solutions; n = length of x", 100, 2000, lambda n, s: merely_convex(n)
    ),
    "lasso": Task("(20): l1 norm weighted by x; n = length of x and y, even", 100, 1000, lambda n, s: lasso(n)),
    "group-lasso": Task(
        "(21): weights of a group lasso by validation loss; n = features",
        600,
        2000,
        lambda n, s: group_lasso(n=n, seed=s),
    ),
}
"""Name -> task, for the command line to list."""


def solve_task(
    task: str,
    n: int | None = None,
    method: str = "moreau",
    steps: int | None = None,
    seed: int = 0,
    debias: bool = False,
    polish: bool = True,
) -> dict[str, Any]:
    """Returns what a method found on a problem, as plain data.

    Args:
        task: A name of `TASKS`.
        n: Size of the problem; None for the task's own.
        method: A name of `nas_moreau.problems.methods.METHODS`.
        steps: At most so many; None for the task's own.
        seed: Of generated data (group-lasso); the others have none.
        debias: Remove the penalty's bias (methods named moreau).
        polish: Solve the lower level exactly at the final x, from the final y.

    Returns:
        `task n method x y error residual steps seconds peak_memory_bytes message`; `error` is |x - x*| / max(1, |x*|),
        null where no solution is known; `residual` is R_k of (15) before polishing, null for methods without c and
        gamma.

    Raises:
        InputError: Unknown task or method, a size that the problem cannot have, or a method that cannot be used on it.
    """
    if task not in TASKS:
        raise InputError(f"There is no task '{task}'.", did_you_mean(task, list(TASKS)))
    if method not in METHODS:
        raise InputError(f"There is no bilevel method '{method}'.", did_you_mean(method, list(METHODS)))
    if debias and method not in MOREAU:
        raise InputError(f"Method '{method}' has no penalty bias to remove.", "Leave the option out.")
    n = TASKS[task].n if n is None else n
    steps = TASKS[task].steps if steps is None else steps
    if n < 1 or steps < 1:
        raise InputError(f"n is {n} and steps is {steps}.", "Both must be at least 1.")
    try:
        case = TASKS[task].build(n, seed)
        chosen = method_for(method, case)
        begin = time.perf_counter()
        found = solve(case.problem, case.x, case.y, chosen, steps=steps, debias=debias)
    except ValueError as refusal:
        raise InputError(f"{task} with n = {n} by {method}: {refusal}") from refusal
    seconds = time.perf_counter() - begin
    last = None
    finite = math.isfinite(found.movement)
    if finite and method in MOREAU:
        tuning = found.state.tuning
        gamma = tuning.gamma if tuning else case.paper["gamma"]
        last = residual(case.problem, found.x, found.y, found.history["c"][-1], gamma).total
    y, message = found.y, found.message
    if polish and finite:
        lower = lower_solution(case.problem, found.x, y)
        y, message = lower.point, f"{message} Polished: the lower level is solved to {lower.residual:.1e} at this x."
    error = case.error(found.x) if case.error else None
    return {
        "task": task,
        "n": n,
        "method": method,
        "x": [value for tensor in found.x for value in tensor.flatten().tolist()],
        "y": [value for tensor in y for value in tensor.flatten().tolist()],
        "error": error if error is None or math.isfinite(error) else None,
        "residual": last if last is not None and math.isfinite(last) else None,
        "steps": found.steps,
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes(found.x[0].device),
        "message": message,
    }
