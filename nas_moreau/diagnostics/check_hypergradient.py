"""Each method's direction of the alphas against the exact hypergradient, on a supernet where that is known.

Three questions, asked in float64 on a fixed batch (see `tiny_supernet`):

    exact      do three independent ways to the hypergradient agree? implicit solve, reverse mode through the lower
               iterations, central differences of F(x, y*(x))
    moreau     where y minimises F/c + f - v_gamma(x, .) and theta is its exact prox, does c d_x of (10) come to the
               hypergradient, with an error that falls as 1/c?
    as run     where does each method's direction point after some steps of its own, at its own alphas and weights?

The first two and darts2's own definition must hold; the third is measured and told.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
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
from nas_moreau.diagnostics.saved_memory import peak_saved_bytes
from nas_moreau.diagnostics.tiny_supernet import TinySupernet, tiny_supernet
from nas_moreau.errors import InputError, did_you_mean, first_line
from nas_moreau.search.methods import parse_method, search_methods
from nas_moreau.search.schedules import build_schedules, search_step_sizes

PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10_000.0)
ASYMPTOTIC = 100.0
"""From this c on the order of the error is fitted; below, 1/c is not small."""
GAMMA = 10.0
STEPS = 60
"""Steps of the weights before a method's direction is read."""
UNIT = 0.01
"""What the weights are measured in where darts2 is held against its definition."""

PRESET = "nas_bench_201_cpu"
"""The search whose constants are used where methods are measured as they run."""


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


def known_methods() -> list[str]:
    """Returns the names that can be checked: the search methods that have step sizes in a search and take steps."""
    return [
        name
        for name, method in search_methods().items()
        if method.info is not None and "published" not in method.info.needs
    ]


def check_hypergradient(
    methods: Sequence[str] | None = None,
    seed: int = 0,
    layers: int = 3,
    steps: int = STEPS,
    penalties: Sequence[float] = PENALTIES,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Returns `rows`, `checks` and `passed`, as plain data.

    Rows have `part method c cosine relative_error norm seconds memory_bytes verdict` (`part`: exact, moreau, as run;
    memory: the most that was kept for backward passes at one time); those as run have `first_order_cosine`, too, that
    of F_x alone at the same alphas and weights. Checks have `name value limit passed verdict`.
    Directions are compared in the units of the hypergradient: those of methods with a penalty are multiplied by c_k.

    Args:
        methods: Names of `known_methods`; None for all.
        seed: Of the supernet and its images.
        layers: Cells of the supernet.
        steps: Of the weights before a method's direction is read.
        penalties: Values of c for the second part.
        note: Takes a line on what is going on.

    Raises:
        InputError: Unknown method.
    """
    names = known_methods() if methods is None else list(methods)
    for name in names:
        if name not in known_methods():
            raise InputError(f"There is no method '{name}' to check.", did_you_mean(name, known_methods()))
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
    for name in names:
        note(f"{name}: {steps} steps, then its direction")
        rows.append(_as_run(name, tiny, exact, steps, seed, layers))
    if "darts2" in names:
        checks.append(check_darts2(tiny, exact))
    return {
        "seed": seed, "alphas": sum(t.numel() for t in tiny.x), "weights": sum(t.numel() for t in tiny.y),
        "gamma": GAMMA, "smallest_eigenvalue": exact.lowest, "largest_eigenvalue": exact.highest,
        "rows": rows, "checks": checks, "passed": all(check["passed"] for check in checks),
    }  # fmt: skip


def compare_oracles(
    tiny: TinySupernet, exact: Exact, seconds: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns rows and checks of the three ways to the hypergradient."""
    batches = (tiny.upper_batch, tiny.lower_batch)
    rows = [_row("exact", "implicit", None, exact.d_x, exact.d_x, seconds, None, "the reference: f_yy v = F_y, solved")]
    checks = []
    ways: dict[str, Callable[[], Tensors]] = {
        "unrolled": lambda: unrolled_hypergradient(tiny.problem, tiny.x, exact, *batches)[0],
        "differences": lambda: value_differences(tiny.problem, tiny.x, exact, *batches),
    }
    for name, way in ways.items():
        begin = time.perf_counter()
        found = way()
        row = _row("exact", name, None, found, exact.d_x, time.perf_counter() - begin, None, "")
        row["verdict"] = "agrees with the reference" if row["relative_error"] <= 1e-6 else "DIFFERS from the reference"
        rows.append(row)
        checks.append(_check(f"implicit and {name} agree", row["relative_error"], 1e-6, row["relative_error"] <= 1e-6))
    return rows, checks


def compare_penalties(
    tiny: TinySupernet, exact: Exact, penalties: Sequence[float] = PENALTIES
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns a row for every c, Moreau's direction at the exact penalised minimiser, and the checks of its order."""
    rows: list[dict[str, Any]] = []
    before = None
    for c in sorted(penalties, reverse=True):
        begin = time.perf_counter()
        start = None
        if before is not None and c < 100:  # far from y*: go on from the point of the last c
            start = before
        found = penalised_minimum(tiny.problem, tiny.x, exact, c, GAMMA, tiny.upper_batch, tiny.lower_batch, start)
        direction = moreau_direction(tiny.problem, tiny.x, found.y, found.theta, c, tiny.upper_batch, tiny.lower_batch)
        solved = found.is_minimum and found.residual <= 1e-6
        if not solved:  # at a small c there may be none near y*
            rows.append(
                _empty("moreau", "moreau", c, "no minimiser of F/c + f - v_gamma was found: nothing to compare")
            )
            continue
        before = (found.y, found.theta)
        rows.append(_row("moreau", "moreau", c, direction, exact.d_x, time.perf_counter() - begin, None, ""))
        rows[-1]["verdict"] = _words(rows[-1]["cosine"])
    rows.reverse()
    usable = [row for row in rows if row["relative_error"] is not None and row["c"] >= ASYMPTOTIC]
    at_100 = [row["cosine"] for row in usable if row["c"] == 100]
    order = fitted_order([row["c"] for row in usable], [row["relative_error"] for row in usable])
    checks = [
        _check("order of moreau's error in 1/c (is to be 1)", order, 0.15, order is not None and abs(order - 1) <= 0.15)
    ]
    if 100.0 in penalties:
        cosine = at_100[0] if at_100 else None
        checks.append(_check("cosine of moreau at c = 100, at least", cosine, 0.99, bool(at_100) and at_100[0] >= 0.99))
    return rows, checks


def fitted_order(penalties: Sequence[float], errors: Sequence[float]) -> float | None:
    """Returns r of error ~ c^-r by least squares on logarithms; None of fewer than two positive errors."""
    pairs = [(math.log(c), math.log(error)) for c, error in zip(penalties, errors) if error > 0]
    if len(pairs) < 2:
        return None
    a, b = zip(*pairs)
    return -statistics.linear_regression(a, b).slope


def preset_search() -> SearchConfig:
    """Returns the search section of PRESET, without weight decay: the ridge of f stands for it."""
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


def check_darts2(tiny: TinySupernet, exact: Exact, steps: int = 3) -> dict[str, Any]:
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
    for _ in range(steps):
        x, u, state, _ = method.step(problem, x, u, state, **batches)
    del directions[:]
    method.step(problem, x, u, state, **batches)
    with torch.enable_grad():
        leaves_x, leaves_u = ([t.detach().requires_grad_() for t in part] for part in (x, u))
        value = scalar_of(problem.f(leaves_x, leaves_u, tiny.lower_batch))
        ahead = list(torch.autograd.grad(value, leaves_u, create_graph=True))
        if part := build_schedules(search, 1).update_weights.part("momentum", state.y_rule):
            ahead = add(ahead, part.state, part.factor)
        upper = scalar_of(problem.F(leaves_x, add(leaves_u, ahead, -lr), tiny.upper_batch))
        defined = list(torch.autograd.grad(upper, leaves_x, allow_unused=True, materialize_grads=True))
    error = float((flat(directions[-1]) - flat(defined)).norm() / flat(defined).norm()) if directions else None
    return _check("darts2 is the gradient through one step", error, 1e-6, error is not None and error <= 1e-6)


def _advance(method: Method, tiny: TinySupernet, exact: Exact, steps: int) -> tuple[Tensors, Tensors, Any, Any]:
    """Takes steps from the first alphas and their best weights; returns x, y, state and what does the next step."""
    x, y = tiny.x, exact.y
    state = method.init(tiny.problem, x, y, tiny.upper_batch, tiny.lower_batch)

    def step(x: Tensors, y: Tensors, state: Any, k: int) -> Any:
        upper, lower = (  # seeds: what a method draws is another at every step and in both batches
            batch._replace(progress=k / (steps + 1), seed=2 * k + i)
            for i, batch in enumerate((tiny.upper_batch, tiny.lower_batch))
        )
        return method.step(tiny.problem, x, y, state, upper_batch=upper, lower_batch=lower)

    for k in range(steps):
        x, y, state, _ = step(x, y, state, k)
    return x, y, state, lambda: step(x, y, state, steps)


def _as_run(name: str, tiny: TinySupernet, exact: Exact, steps: int, seed: int, layers: int) -> dict[str, Any]:
    """Returns a method's row: its direction after some steps against the hypergradient at its own alphas.

    A method that mixes by draws is held against the hypergradient of the softmax mixture, one draw at a time. One that
    fails, or that never moves the alphas, gets a row that says so.
    """
    torch.manual_seed(0)  # of methods that draw
    mix = parse_method(name).mix
    own = tiny if mix is None else tiny_supernet(seed, layers, mix)
    try:
        method, directions, y_steps = recorded(name, preset_search())
        x, y, _, once = _advance(method, own, exact, math.ceil(steps / y_steps))
        seconds = []
        for _ in range(3):
            del directions[:]
            begin = time.perf_counter()
            new_x, _, _, info = once()
            seconds.append(time.perf_counter() - begin)
        memory = peak_saved_bytes(once)
        c = getattr(info, "c", None)
        direction = directions[0] if directions else subtract(x, new_x)  # a method with an update rule of its own
        direction = [t * (c or 1.0) for t in direction]
        size = float(flat(direction).norm())
        if not size > 0:
            return _empty("as run", name, c, "moves no alphas") | {"norm": size}
        there = exact_hypergradient(tiny.problem, x, y, tiny.upper_batch, tiny.lower_batch)
    except Exception as error:
        return _empty("as run", name, None, f"could not be run here: {type(error).__name__}: {first_line(error)}"[:200])
    row = _row("as run", name, c, direction, there.d_x, statistics.median(seconds), memory, "")
    alone = grad_x(tiny.problem.F, x, y, tiny.upper_batch)
    row["first_order_cosine"] = _cosine(alone, there.d_x)
    row["verdict"] = _words(row["cosine"])
    return row


def _row(
    part: str, method: str, c: float | None, direction: Tensors, reference: Tensors, seconds: float,
    memory: int | None, verdict: str,
) -> dict[str, Any]:  # fmt: skip
    found, wanted = flat(direction), flat(reference)
    error = float((found - wanted).norm() / wanted.norm())
    return {
        "part": part, "method": method, "c": c, "cosine": _cosine(direction, reference), "relative_error": error,
        "norm": float(found.norm()), "seconds": seconds, "memory_bytes": memory, "verdict": verdict,
    }  # fmt: skip


def _empty(part: str, method: str, c: float | None, verdict: str) -> dict[str, Any]:
    missing = dict.fromkeys(("cosine", "relative_error", "norm", "seconds", "memory_bytes"))
    return {"part": part, "method": method, "c": c, **missing, "verdict": verdict}


def _cosine(a: Tensors, b: Tensors) -> float:
    return float(torch.cosine_similarity(flat(a), flat(b), 0))


def _check(name: str, value: float | None, limit: float, passed: bool) -> dict[str, Any]:
    shown = "not known" if value is None else f"{value:.4g}"
    verdict = f"{'holds' if passed else 'FAILS'}: {name}: {shown}, limit {limit:g}"
    return {"name": name, "value": value, "limit": limit, "passed": passed, "verdict": verdict}


def _words(cosine: float) -> str:
    if cosine >= 0.99:
        return "is the hypergradient's direction"
    if cosine >= 0.9:
        return "close to the hypergradient's direction"
    if cosine >= 0.5:
        return "leans towards the hypergradient"
    if cosine > -0.5:
        return "has little to do with the hypergradient"
    return "points away from the hypergradient"
