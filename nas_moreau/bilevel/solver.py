"""`solve`: a bilevel problem, by the solver's own choice or by a given method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from nas_moreau.bilevel.afterwards import debiased, judged, polished
from nas_moreau.bilevel.counting import counted
from nas_moreau.bilevel.iteration import Limits, MakeBatches, Watch, iterate
from nas_moreau.bilevel.method import Iterate, Method
from nas_moreau.bilevel.moreau_envelope import moreau
from nas_moreau.bilevel.problem import Bilevel
from nas_moreau.bilevel.refusals import check_arguments, check_state, refusal
from nas_moreau.bilevel.second_order.driver import solve_by_itself
from nas_moreau.bilevel.second_order.trail import Memory
from nas_moreau.bilevel.solution import SavedState, Solution, Status, restored
from nas_moreau.bilevel.stochastic import soba
from nas_moreau.bilevel.structures import Structure, on_lists
from nas_moreau.bilevel.tensors import Tensors
from nas_moreau.bilevel.updates import distance_over_gradients

Batches = MakeBatches | tuple[Iterable[Any], Iterable[Any]]


@torch.inference_mode(False)  # whatever the caller's mode
@torch.enable_grad()
def solve(
    problem: Bilevel,
    x: Any,
    y: Any,
    method: Method | None = None,
    *,
    steps: int = 2000,
    batches: Batches | None = None,
    polish: bool = False,
    debias: bool = False,
    tolerance: float = 1e-8,
    watch: Watch | None = None,
    state: Any = None,
) -> Solution:
    """Solves a bilevel problem; how the run ended stands in the solution, divergence included.

    Without a method the solver chooses by itself: second order where the problem allows it, the Moreau envelope to find
    the basin and for the rest, a stochastic method with minibatches.

    Example:
        >>> import torch
        >>> from nas_moreau.bilevel import Bilevel, solve
        >>> problem = Bilevel(
        ...     F=lambda x, y, batch: 0.5 * (x[0] - 1) ** 2 + 0.5 * y[0] ** 2,
        ...     f=lambda x, y, batch: 0.5 * y[0] ** 2 - x[0] * y[0],
        ... )
        >>> start = [torch.zeros((), dtype=torch.float64)]
        >>> solution = solve(problem, start, start)
        >>> solution.status, round(float(solution.x[0]), 8), round(float(solution.y[0]), 8)
        ('solved', 0.5, 0.5)

    Args:
        problem: F, f, g, the projections, the constraint.
        x: Start, a list or dict of tensors. F, f, the constraint and the solution have the same form; g and the
            projections get lists, in the order of the dict.
        y: Start, in the same forms.
        method: `moreau(...)` or another method; None for the solver's own choice.
        steps: Maximum number of steps (without a method: of line searches of x and steps of the envelope); the removal
            of bias may take as many again at each of its four penalties.
        batches: k -> (upper_batch, lower_batch), or a pair of iterables such as DataLoaders, begun again when they end.
            With it there is no stopping rule: minibatch gradients never vanish.
        polish: After a method: solve the lower level to 1e-10 at the final x, from y (see `polished`), with `batches`
            on the first lower batch. Without a method y is solved anyway.
        debias: After a method: remove the penalty's bias (see `debiased`). Without a method there is none to remove.
        tolerance: Of the certificate, relative: units of x and F do not matter. A method stops when its own `residual`
            is below it; for `moreau` that is c_k (|dx|/alpha + |dy|/beta) + |dtheta|/eta, relative to 1 + |grad F|.
        watch: Called after every step with (k, x, y, info); True ends the run. info is None without a method.
        state: Of a solution with the same method, to continue from its x and y.

    Raises:
        TypeError: x or y is not a list or dict of floating-point tensors, or another argument is of another kind.
        ValueError: `steps` is not positive; `debias` with a method that has no penalty, or with `batches`; a state of
            another method or other shapes; automatic constants of a given method where F or f is not finite at the
            start.
    """
    check_arguments(steps, tolerance, method, watch)
    given_x, given_y = Structure("x", x), Structure("y", y)
    make_batches = None if batches is None else _batch_function(batches)
    posed, spent = counted(on_lists(problem, given_x, given_y))
    seen = _arranged(watch, given_x, given_y)
    begin = given_x.tensors, given_y.tensors
    try:
        reason = refusal(posed, *begin, method, make_batches is not None)
        if reason is not None:
            found = _not_begun(begin, "refused", reason)
        elif method is None and make_batches is None:
            found = _by_itself(posed, *begin, steps, tolerance, seen, state)
        else:
            chosen = _for_minibatches(posed) if method is None else method
            limits = Limits(steps, tolerance, make_batches, seen)
            found = _by_method(posed, begin, chosen, limits, state, spent, debias=debias, polish=polish)
    except KeyboardInterrupt:
        found = _not_begun(begin, "stopped", "Stopped by Ctrl-C before the first step.", state)
    evaluations = max(found.evaluations, spent())
    return replace(found, x=given_x.arrange(found.x), y=given_y.arrange(found.y), evaluations=evaluations)


def _not_begun(begin: tuple[Tensors, Tensors], status: Status, reason: str, state: Any = None) -> Solution:
    """Returns the start as the solution of a run without a step."""
    return Solution(*begin, state, status, reason, {}, 0, math.nan)


def _by_itself(
    problem: Bilevel, x: Tensors, y: Tensors, steps: int, tolerance: float, watch: Watch | None, state: Any
) -> Solution:
    """Solves by the solver's own choice."""

    def envelope(x: Tensors, y: Tensors, steps: int, debias: bool = False) -> Solution:
        same, spent = counted(problem)
        method = moreau(order="lagged")
        begin = Iterate(x, y, method.init(same, x, y))
        found = iterate(same, begin, method, Limits(steps, tolerance, watch=watch))
        if debias:
            found = judged(same, debiased(same, found, method, steps, watch), tolerance, spent)
        return replace(found, evaluations=spent())

    memory = restored(state, Memory(0, ()))
    if not isinstance(memory, Memory | None):
        raise ValueError("state belongs to a run with a method. Give that method, or leave the state out.")
    return solve_by_itself(problem, x, y, envelope, steps=steps, tolerance=tolerance, watch=watch, state=memory)


def _by_method(
    problem: Bilevel,
    begin: tuple[Tensors, Tensors],
    method: Method,
    limits: Limits,
    state: Any,
    spent: Callable[[], int],
    *,
    debias: bool,
    polish: bool,
) -> Solution:
    """Solves by a given method."""
    batches, watch, steps = limits.batches, limits.watch, limits.steps
    if debias and (method.at_penalty is None or batches is not None):
        raise ValueError("debias needs a method with a penalty c and no minibatches. Use moreau(...) and batches=None.")
    if isinstance(state, Memory):
        raise ValueError("state belongs to a run without a method. Leave the method or the state out.")
    first = batches(getattr(state, "k", 0)) if batches else (None, None)
    given = state
    if state is None or isinstance(state, SavedState):
        fresh = method.init(problem, *begin, *first)
        state = fresh if state is None else restored(state, fresh)
    if given is not None:
        check_state(state, method, *begin)
    limits = limits._replace(first=getattr(state, "k", 0))
    try:
        found = iterate(problem, Iterate(*begin, state), method, limits)
    except AttributeError as error:
        if given is None or type(method.init(problem, *begin, *first)) is type(state):
            raise
        raise ValueError("state belongs to another method. Give that method, or leave the state out.") from error
    if method.explain is not None:
        found = replace(found, message=f"{found.message} Automatic constants: {method.explain(found.state)}.")
    if debias:
        found = debiased(problem, found, method, steps, watch)
    if polish:
        found = polished(problem, found, first[1], watch)
    return found if batches else judged(problem, found, limits.tolerance, spent)


def _for_minibatches(problem: Bilevel) -> Method:
    """Returns the method for minibatches: implicit steps where f is smooth, else the lagged envelope."""
    smooth = problem.g is None and problem.project_y is None and not problem.sharded
    return soba() if smooth else moreau(order="lagged", update_x=distance_over_gradients())


def _arranged(watch: Watch | None, x: Structure, y: Structure) -> Watch | None:
    """Returns `watch` on lists of tensors."""
    if watch is None or (x.keys is None and y.keys is None):
        return watch
    return lambda k, a, b, info: watch(k, x.arrange(a), y.arrange(b), info)


def _batch_function(batches: Batches) -> MakeBatches:
    """Returns k -> (upper batch, lower batch) of a function or of a pair of iterables."""
    if callable(batches):
        return batches
    parts = batches if isinstance(batches, (tuple, list)) else ()
    if len(parts) != 2 or not all(isinstance(part, Iterable) for part in parts):
        raise TypeError("batches must be a function of k, or a pair of iterables: (upper batches, lower batches).")
    upper, lower = (_endless(part) for part in parts)
    latest: dict[int, tuple[Any, Any]] = {}

    def next_pair(k: int) -> tuple[Any, Any]:
        if k not in latest:  # the same pair for the same k: constants are chosen on the first one
            latest.clear()
            latest[k] = next(upper), next(lower)
        return latest[k]

    return next_pair


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    """Yields the batches again and again."""
    passes = 0
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            fault = "has ended and cannot be begun again, as a generator" if passes else "is empty"
            raise ValueError(f"An iterable of batches {fault}. Give a list or a DataLoader.")
        passes += 1
