"""Each method's architecture gradient against the exact hypergradient, on a supernet where that is known.

Three questions, asked in float64 on a fixed batch (see `tiny_supernet`):

    exact      do three independent ways to the hypergradient agree? implicit solve, reverse mode through the lower
               iterations, central differences of F(x, y*(x))
    moreau     where y minimises F/c + f - v_gamma(x, .) and theta is its exact prox, does c d_x of (10) approach the
               hypergradient, with an error that falls as 1/c?
    as run     where does each method's architecture gradient point after some of its steps, at its alphas and weights?

The first two and the definition of darts2 must hold; the third is measured and reported.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from nas_moreau.bilevel import Bilevel, Method, exact_hypergradient
from nas_moreau.bilevel.exact import (
    Exact,
    flat,
    moreau_direction,
    penalised_minimum,
    unrolled_hypergradient,
    value_differences,
)
from nas_moreau.bilevel.tensors import Tensors, add, grad_x, scalar_of, subtract
from nas_moreau.bilevel.updates import gradient_descent
from nas_moreau.config import SearchConfig, load_config
from nas_moreau.diagnostics.direction_table import (
    Check,
    DirectionRow,
    Directions,
    below,
    compared,
    cosine_of,
    judged,
)
from nas_moreau.diagnostics.saved_memory import peak_saved_bytes
from nas_moreau.diagnostics.tiny_supernet import TinySupernet, tiny_supernet
from nas_moreau.errors import InputError, first_line, unknown
from nas_moreau.search.methods import parse_method, search_methods
from nas_moreau.search.schedules import build_schedules, search_step_sizes

PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10_000.0)
ASYMPTOTIC = 100.0
"""From this c on the order of the error is fitted; below, 1/c is not small."""
GAMMA = 10.0
STEPS = 60
"""Steps of the weights before a method's architecture gradient is read."""
UNIT = 0.01
"""Unit of the weights where darts2 is compared with its definition."""
PRESET = "nas_bench_201_cpu"
"""The search with whose constants methods are measured as they run."""


def known_methods() -> list[str]:
    """Returns the names that can be checked: the search methods that take steps."""
    return [name for name, method in search_methods().items() if method.takes_steps]


def check_hypergradient(
    methods: Sequence[str] | None = None,
    seed: int = 0,
    layers: int = 3,
    steps: int = STEPS,
    penalties: Sequence[float] = PENALTIES,
    note: Callable[[str], None] = lambda text: None,
) -> Directions:
    """Compares methods with the exact hypergradient.

    Args:
        methods: Names of `known_methods`; None for all.
        seed: Seed of the supernet and its images.
        layers: Cells of the supernet.
        steps: Steps of the weights before an architecture gradient is read.
        penalties: Values of c for the second part.
        note: Called with a line on the progress.

    Raises:
        InputError: Unknown method, or no steps.
    """
    names = known_methods() if methods is None else list(methods)
    for name in names:
        if name not in known_methods():
            raise unknown("method to check", name, known_methods())
    if steps < 1:
        raise InputError(f"The number of steps is {steps}.", "Take at least 1.")
    tiny = tiny_supernet(seed, layers)
    note("the exact hypergradient, three ways")
    begin = time.perf_counter()
    exact = exact_hypergradient(tiny.problem, tiny.x, tiny.y, tiny.upper_batch, tiny.lower_batch)
    rows, checks = compare_oracles(tiny, exact, time.perf_counter() - begin)
    note("Moreau's direction at the penalised minimiser")
    more_rows, more_checks = compare_penalties(tiny, exact, penalties)
    rows, checks = rows + more_rows, checks + more_checks
    for number, name in enumerate(names):
        note(f"{name} ({number + 1} of {len(names)}): {steps} steps, then its architecture gradient")
        mix = parse_method(name).mix
        start = tiny if mix is None else tiny_supernet(seed, layers, mix)
        rows.append(_as_run(name, tiny, start, exact, steps))
    if "darts2" in names:
        checks.append(check_darts2(tiny, exact))
    return Directions(
        seed=seed,
        alphas=sum(t.numel() for t in tiny.x),
        weights=sum(t.numel() for t in tiny.y),
        gamma=GAMMA,
        smallest_eigenvalue=exact.lowest,
        largest_eigenvalue=exact.highest,
        rows=rows,
        checks=checks,
    )


def compare_oracles(tiny: TinySupernet, exact: Exact, seconds: float) -> tuple[list[DirectionRow], list[Check]]:
    """Returns rows and checks of the three ways to the hypergradient; `seconds` is the time of the first."""
    batches = (tiny.upper_batch, tiny.lower_batch)
    reference = DirectionRow("exact", "implicit", None, "the reference: f_yy v = F_y, solved", seconds=seconds)
    rows, checks = [compared(reference, exact.d_x, exact.d_x)], []
    ways: dict[str, Callable[[], Tensors]] = {
        "unrolled": lambda: unrolled_hypergradient(tiny.problem, tiny.x, exact, *batches)[0],
        "differences": lambda: value_differences(tiny.problem, tiny.x, exact, *batches),
    }
    for name, way in ways.items():
        begin = time.perf_counter()
        found = way()
        row = DirectionRow("exact", name, None, seconds=time.perf_counter() - begin)
        row = compared(row, found, exact.d_x)
        check = below(f"implicit and {name} agree", row.relative_error, 1e-6)
        agrees = "agrees with the reference" if check.passed else "DIFFERS from the reference"
        rows.append(replace(row, verdict=agrees))
        checks.append(check)
    return rows, checks


def compare_penalties(
    tiny: TinySupernet, exact: Exact, penalties: Sequence[float] = PENALTIES
) -> tuple[list[DirectionRow], list[Check]]:
    """Returns a row for every c, Moreau's direction at the exact penalised minimiser, and the checks of its order."""
    rows: list[DirectionRow] = []
    before = None
    for c in sorted(penalties, reverse=True):
        begin = time.perf_counter()
        start = before if c < 100 else None  # far from y*: continue from the point of the previous c
        found = penalised_minimum(tiny.problem, tiny.x, exact, c, GAMMA, (tiny.upper_batch, tiny.lower_batch), start)
        direction = moreau_direction(tiny.problem, tiny.x, found.y, found.theta, c, tiny.upper_batch, tiny.lower_batch)
        if not (found.is_minimum and found.residual <= 1e-6):  # at a small c there may be none near y*
            fault = "no minimiser of F/c + f - v_gamma was found: nothing to compare"
            rows.append(DirectionRow("moreau", "moreau", c, fault))
            continue
        before = (found.y, found.theta)
        row = DirectionRow("moreau", "moreau", c, seconds=time.perf_counter() - begin)
        rows.append(judged(compared(row, direction, exact.d_x)))
    rows.reverse()
    usable = [(row.c, row.relative_error) for row in rows if row.c is not None and row.c >= ASYMPTOTIC]
    order = fitted_order(usable)
    near_one = order is not None and abs(order - 1) <= 0.15
    checks = [Check("order of moreau's error in 1/c (is to be 1)", order, 0.15, near_one)]
    if 100.0 in penalties:
        cosine = next((row.cosine for row in rows if row.c == 100), None)
        checks.append(
            Check("cosine of moreau at c = 100, at least", cosine, 0.99, cosine is not None and cosine >= 0.99)
        )
    return rows, checks


def fitted_order(errors: Sequence[tuple[float, float | None]]) -> float | None:
    """Returns r of error ~ c^-r from pairs (c, error), by least squares on logarithms; None below two errors > 0."""
    pairs = [(math.log(c), math.log(error)) for c, error in errors if error]
    if len(pairs) < 2:
        return None
    a, b = zip(*pairs)
    return -statistics.linear_regression(a, b).slope


# --- methods as they run ----------------------------------------------------------------------------------------------


class Recorded(NamedTuple):
    """A method built so that its architecture gradient can be read.

    Attributes:
        method: The method.
        directions: Gets one gradient at every step, before x's update rule.
        y_steps: Steps of the weights in one step of the method.
    """

    method: Method
    directions: list[Tensors]
    y_steps: int


def preset_search() -> SearchConfig:
    """Returns the search section of PRESET without weight decay, which the ridge of f replaces."""
    search = load_config(PRESET).search
    parts = {"weights": search.weights, "alphas": search.alphas}
    return search.model_copy(update={k: part.model_copy(update={"weight_decay": 0.0}) for k, part in parts.items()})


def recorded(name: str, search: SearchConfig) -> Recorded:
    """Returns a search method that records every architecture gradient as its update rule gets it."""
    info, directions = parse_method(name).info, []
    assert info is not None
    schedules = build_schedules(search, 10**9)  # a single epoch: step sizes stay as at the beginning
    sizes = search_step_sizes(search, schedules, info)
    rule = sizes.update_x or gradient_descent()

    def apply(direction: Tensors, step: float, params: Tensors, state: Any) -> tuple[Tensors, Any]:
        directions.append([t.detach().clone() for t in direction])
        return rule.apply(direction, step, params, state)

    method = info.build(sizes._replace(update_x=rule._replace(apply=apply)))
    return Recorded(method, directions, sizes.inner_steps if info.needs >= {"hessian", "inner loop"} else 1)


def check_darts2(tiny: TinySupernet, exact: Exact) -> Check:
    """Returns the check of the method registered as darts2 against its definition, at a state with momentum.

    The definition: the gradient in x of F(x, y - xi (m b + f_y(x, y))) by reverse mode, b the momentum's buffer. The
    weights are measured in units of UNIT, and xi in its square, which leaves every step as it was but makes the radius
    of the central difference that much smaller: what is left of its error is below the limit.

    The published fault, (p - n) / 2. * eps for (p - n) / (2 * eps), leaves next to nothing of the second term.
    """

    def measured(objective: Any) -> Any:
        return lambda x, u, batch: objective(x, add(exact.y, u, UNIT), batch)

    problem = Bilevel(*(measured(part) for part in (tiny.problem.F, tiny.problem.f)))
    search = preset_search()
    lr = search.weights.lr / UNIT**2
    weights = search.weights.model_copy(update={"lr": lr, "lr_min": lr, "clip": None})
    search = search.model_copy(update={"weights": weights})
    method, directions, _ = recorded("darts2", search)
    x, u = tiny.x, [torch.zeros_like(t) for t in exact.y]
    state = method.init(problem, x, u)
    batches = {"upper_batch": tiny.upper_batch, "lower_batch": tiny.lower_batch}
    for _ in range(3):
        x, u, state, _ = method.step(problem, x, u, state, **batches)
    del directions[:]
    method.step(problem, x, u, state, **batches)
    with torch.enable_grad():
        leaves_x, leaves_u = ([t.detach().requires_grad_() for t in part] for part in (x, u))
        lower = scalar_of(problem.f(leaves_x, leaves_u, tiny.lower_batch))
        ahead = list(torch.autograd.grad(lower, leaves_u, create_graph=True))
        if part := build_schedules(search, 1).update_weights.part("momentum", state.y_rule):
            ahead = add(ahead, part.state, part.factor)
        upper = scalar_of(problem.F(leaves_x, add(leaves_u, ahead, -lr), tiny.upper_batch))
        defined = list(torch.autograd.grad(upper, leaves_x, allow_unused=True, materialize_grads=True))
    error = float((flat(directions[-1]) - flat(defined)).norm() / flat(defined).norm()) if directions else None
    return below("darts2 is the gradient through one step", error, 1e-6)


class Advanced(NamedTuple):
    """A method after some steps: its alphas, its weights, and a function that does the next step."""

    x: Tensors
    y: Tensors
    next_step: Callable[[], tuple[Tensors, Tensors, Any, Any]]


def _advance(method: Method, tiny: TinySupernet, exact: Exact, steps: int) -> Advanced:
    """Takes steps from the first alphas and their best weights."""
    x, y = tiny.x, exact.y
    state = method.init(tiny.problem, x, y, tiny.upper_batch, tiny.lower_batch)

    def step(x: Tensors, y: Tensors, state: Any, k: int) -> Any:
        upper, lower = (  # seeds: a method that draws does so differently at every step and in both batches
            batch._replace(progress=k / (steps + 1), seed=2 * k + i)
            for i, batch in enumerate((tiny.upper_batch, tiny.lower_batch))
        )
        return method.step(tiny.problem, x, y, state, upper_batch=upper, lower_batch=lower)

    for k in range(steps):
        x, y, state, _ = step(x, y, state, k)
    return Advanced(x, y, lambda: step(x, y, state, steps))


def _as_run(name: str, tiny: TinySupernet, start: TinySupernet, exact: Exact, steps: int) -> DirectionRow:
    """Returns a method's row: its architecture gradient after some steps against the hypergradient at its alphas.

    A method that mixes by draws is compared with the hypergradient of the softmax mixture, one draw at a time. One that
    fails, or that never moves the alphas, gets a row with the reason.

    Args:
        name: The method.
        tiny: The supernet with the softmax mixture.
        start: The supernet that the method searches in.
        exact: The hypergradient at the first alphas.
        steps: Steps of the weights.
    """
    torch.manual_seed(0)  # for methods that draw
    row = DirectionRow("as run", name, None)
    try:
        method, directions, y_steps = recorded(name, preset_search())
        x, y, next_step = _advance(method, start, exact, math.ceil(steps / y_steps))
        seconds = []
        for _ in range(3):
            del directions[:]
            begin = time.perf_counter()
            new_x, _, _, info = next_step()
            seconds.append(time.perf_counter() - begin)
        row = replace(row, c=getattr(info, "c", None))
        direction = directions[0] if directions else subtract(x, new_x)  # a method that ignores update_x
        direction = [t * (row.c or 1.0) for t in direction]
        if not float(flat(direction).norm()) > 0:
            return replace(row, verdict="moves no alphas", norm=float(flat(direction).norm()))
        memory = peak_saved_bytes(next_step)
        there = exact_hypergradient(tiny.problem, x, y, tiny.upper_batch, tiny.lower_batch)
    except Exception as error:
        fault = f"could not be run here: {type(error).__name__}: {first_line(error)}"
        return DirectionRow("as run", name, None, fault[:200])
    row = replace(row, seconds=statistics.median(seconds), memory_bytes=memory)
    row = judged(compared(row, direction, there.d_x))
    return replace(row, first_order_cosine=cosine_of(grad_x(tiny.problem.F, x, y, tiny.upper_batch), there.d_x))
