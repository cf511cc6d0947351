"""The published tables of the bilevel solver again: all methods interleaved in one run, medians, time to an accuracy.

    python scripts/benchmark_bilevel.py                          # every table, 5 repeats
    python scripts/benchmark_bilevel.py --tables sine --repeats 7 --figure errors.png

Times are CPU seconds of this process with one thread (what other programs on the machine do hardly enters), of the
method's own `init` and `step` calls; errors are evaluated between steps and not counted. "-" means: not reached in the
steps allowed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nas_moreau.bilevel import lower_solution, moreau, residual, solve
from nas_moreau.bilevel.methods import METHODS
from nas_moreau.problems import Case, lasso, merely_convex, method_for, quadratic, relative_error, sine
from nas_moreau.problems.group_lasso import grid_search, group_lasso, random_search, tpe_search

Row = dict[str, Any]
RACED = [name for name in METHODS if name not in ("moreau-auto", "lower-only", "upper-only")]


def race(case: Case, name: str, accuracy: float, steps: int) -> Row:
    """Returns CPU seconds and steps until the error is below `accuracy`, the last error, and the curve of both."""
    seconds, reached, curve = 0.0, None, []
    try:
        # a rival's constants are given to it; the time in which `moreau` finds its own is part of `init`, and counted
        method = method_for(name, case)
        begin = time.process_time()
        x, y, state = case.x, case.y, method.init(case.problem, case.x, case.y)
    except ValueError:
        return {"method": name, "error": None, "seconds": None, "steps": None, "curve": [], "refused": True}
    seconds += time.process_time() - begin
    error, k = case.error(x), 0
    for k in range(1, steps + 1):
        begin = time.process_time()
        x, y, state, _ = method.step(case.problem, x, y, state)
        seconds += time.process_time() - begin
        error = case.error(x)
        curve.append((seconds, error))
        if not error < 1e12:
            break
        if error <= accuracy and reached is None:
            reached = (seconds, k)
            if k >= steps // 4:
                break
    at, count = reached or (None, None)
    return {"method": name, "error": error, "seconds": at, "steps": count, "curve": curve, "refused": False}


def interleaved(build: Callable[[], Case], names: list[str], accuracy: float, steps: int, repeats: int) -> list[Row]:
    """Returns one row a method, with medians over repeats; the methods take turns within every repeat."""
    runs: dict[str, list[Row]] = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            # the errors are the same in every repeat, so what did not arrive once is not run again
            if not runs[name] or runs[name][0]["seconds"] is not None:
                runs[name].append(race(build(), name, accuracy, steps))
    rows = []
    for found in runs.values():
        times = [run["seconds"] for run in found]
        median = statistics.median(times) if all(t is not None for t in times) else None
        rows.append(found[0] | {"seconds": median, "n": len(found)})
    return rows


def show(title: str, rows: list[Row]) -> None:
    """Prints a table."""
    print(f"\n{title}\n| method | CPU s to accuracy | steps | last error |\n|---|---|---|---|")
    for row in rows:
        if row["refused"]:
            print(f"| {row['method']} | refused: needs a smooth lower level | | |")
            continue
        seconds = "-" if row["seconds"] is None else f"{row['seconds']:.3f}"
        print(f"| {row['method']} | {seconds} | {row['steps'] or '-'} | {row['error']:.1e} |")


def debiased(case: Case, steps: int) -> Row:
    """Returns error and CPU seconds of `solve` with the bias removed and the lower level polished."""
    begin = time.process_time()
    found = solve(case.problem, case.x, case.y, moreau(), steps=steps, debias=True, polish=True)
    seconds = time.process_time() - begin
    y_error = relative_error(found.y, case.y_of(found.x)) if case.y_of else None
    return {"error": case.error(found.x), "y_error": y_error, "seconds": seconds, "steps": found.steps}


def show_debiased(name: str, case: Case, steps: int) -> Row:
    """Prints and returns what `debiased` found."""
    row = debiased(case, steps)
    y = "" if row["y_error"] is None else f", y(x) error {row['y_error']:.1e}"
    print(f"bias removed, {name}: error {row['error']:.1e}{y}, {row['steps']} steps, {row['seconds']:.2f} CPU s")
    return row


def sine_tables(repeats: int) -> dict[str, Any]:
    """(19), from the paper's start and from one near the solution (where the other methods take the right branch)."""
    found: dict[str, Any] = {}
    names = [
        "moreau-gauss-seidel",
        "moreau-jacobi",
        "moreau-lagged",
        "moreau-paper",
        "bome",
        "v-pbgd",
        "f2sa",
        "rhg",
        "implicit-cg",
    ]
    for n in (1, 10, 100, 1000):
        rows = interleaved(lambda n=n: sine(n), names, 1e-2, 800, repeats)
        show(f"(19) n = {n}, start (-6, 0), accuracy 1e-2", rows)
        found[f"sine {n}"] = rows
        exact = sine(n)
        start = (float(exact.x_exact[0]) + 0.5, float(exact.y_exact[0][0]) - 0.5)
        near = interleaved(lambda n=n, start=start: sine(n, start=start), names, 1e-2, 800, repeats)
        show(f"(19) n = {n}, start at the solution + (.5, -.5), accuracy 1e-2", near)
        found[f"sine {n} near"] = near
        found[f"sine {n} debiased"] = show_debiased(f"(19) n = {n}", sine(n), 300)
    return found


def sizes_table(repeats: int) -> dict[str, Any]:
    """(19) from the paper's start for every n, no constant given: errors of x, plain and with the bias removed."""
    rows = []
    print("\n(19) start (-6, 0), no constant given, 800 steps")
    print("| n | error | seconds | bias removed | seconds |\n|---|---|---|---|---|")
    for n in (1, 2, 5, 10, 50, 100, 200, 500, 1000):
        plain, better = [], []
        for _ in range(repeats):
            case = sine(n)
            for debias, times in ((False, plain), (True, better)):
                begin = time.process_time()
                found = solve(case.problem, case.x, case.y, moreau(), steps=800, debias=debias)
                times.append((case.error(found.x), time.process_time() - begin))
        seconds = [statistics.median(t for _, t in times) for times in (plain, better)]
        print(f"| {n} | {plain[0][0]:.1e} | {seconds[0]:.2f} | {better[0][0]:.1e} | {seconds[1]:.2f} |")
        rows.append({"n": n, "error": plain[0][0], "debiased": better[0][0], "seconds": seconds})
    return {"sizes": rows}


def quadratic_tables(repeats: int) -> dict[str, Any]:
    """(77) and (18)."""
    found: dict[str, Any] = {}
    for title, build, accuracy in (("(77)", quadratic, 1e-2), ("(18)", merely_convex, 1e-5)):
        rows = interleaved(lambda build=build: build(100), RACED, accuracy, 2000, repeats)
        show(f"{title} n = 100, accuracy {accuracy:.0e}", rows)
        found[title] = rows
        found[title + " debiased"] = show_debiased(f"{title} n = 100", build(100), 1000)
    return found


def lasso_tables(repeats: int) -> dict[str, Any]:
    """(20): distance of x to the solution set."""
    found: dict[str, Any] = {}
    names = ["moreau-gauss-seidel", "moreau-jacobi", "moreau-lagged", "moreau-paper", "darts1", "bome"]
    for n in (2, 100, 1000):
        rows = interleaved(lambda n=n: lasso(n), names, 1e-8, 800, repeats)
        show(f"(20) n = {n}, accuracy 1e-8", rows)
        found[f"lasso {n}"] = rows
        found[f"lasso {n} polished"] = show_debiased(f"(20) n = {n}", lasso(n), 400)
    return found


def group_lasso_tables(repeats: int) -> dict[str, Any]:
    """(21): the best validation loss of three searches, and how long `moreau` takes to reach it."""
    found: dict[str, Any] = {}
    for features in (60, 600):
        cases = [group_lasso(n=features, seed=seed) for seed in range(repeats)]
        rows: list[Row] = []
        for seed, case in enumerate(cases):
            searches = {"grid": grid_search, "random": random_search, "tpe": tpe_search}
            best = float("inf")
            for name, search in searches.items():
                begin = time.process_time()
                trial = search(case, 50)
                best = min(best, trial.objective)
                rows.append(
                    {
                        "method": name,
                        "seed": seed,
                        "objective": trial.objective,
                        "seconds": time.process_time() - begin,
                        "test": case.data.test_error(trial.y),
                    }
                )
            for name, method in (("moreau-gauss-seidel", moreau()), ("moreau-paper", moreau(**case.paper))):
                rows.append({"method": name, "seed": seed} | reach(case, method, best, 2000))
        print(
            f"\n(21) {features} features, seeds 0..{repeats - 1}, medians; "
            "'to beat': the time to the loss of the best search + 1e-4"
        )
        print(
            "| method | validation loss | test error | CPU s | CPU s to beat | seeds that beat |\n"
            "|---|---|---|---|---|---|"
        )
        for name in ("grid", "random", "tpe", "moreau-gauss-seidel", "moreau-paper"):
            mine = [row for row in rows if row["method"] == name]
            to_beat = [row["beat"] for row in mine if row.get("beat") is not None]
            middle = {key: statistics.median(row[key] for row in mine) for key in ("objective", "test", "seconds")}
            beat = f"{statistics.median(to_beat):.3f}" if to_beat else "-"
            won = f"{len(to_beat)}/{len(mine)}" if name.startswith("moreau") else ""
            print(
                f"| {name} | {middle['objective']:.3f} | {middle['test']:.2f} | {middle['seconds']:.2f} "
                f"| {beat} | {won} |"
            )
        found[f"group lasso {features}"] = rows
    return found


def reach(case: Case, method: Any, goal: float, steps: int) -> Row:
    """Returns polished validation loss and CPU seconds at the end, and the seconds at which it first beat `goal`."""
    begin = time.process_time()
    x, y, state = case.x, case.y, method.init(case.problem, case.x, case.y)
    seconds, beat, objective, best_y = time.process_time() - begin, None, float("inf"), y
    for k in range(1, steps + 1):
        begin = time.process_time()
        x, y, state, _ = method.step(case.problem, x, y, state)
        seconds += time.process_time() - begin
        if k % 10 == 0 and (beat is None or k == steps):
            begin = time.process_time()
            best_y = lower_solution(case.problem, x, y, tolerance=1e-7).point
            polish = time.process_time() - begin
            objective = float(case.problem.F(x, best_y, None))
            if beat is None and objective <= goal + 1e-4:
                beat = seconds + polish
    return {"objective": objective, "seconds": seconds, "beat": beat, "test": case.data.test_error(best_y)}


def overhead(repeats: int) -> dict[str, Any]:
    """A step on (19) with n = 1000 against the bare gradient evaluations it needs, alternating, medians."""
    case, found = sine(1000), {}
    F, f = case.problem.F, case.problem.f
    needed = {
        "gauss-seidel": [(f, "y"), (F, "x"), (f, "x"), (f, "x"), (F, "y"), (f, "y")],
        "jacobi": [(f, "y"), (F, "xy"), (f, "xy"), (f, "x")],
        "lagged": [(f, "xy"), (F, "xy"), (f, "xy")],
    }

    def evaluations(order: str) -> None:
        for objective, wanted in needed[order]:
            x = [t.detach().requires_grad_("x" in wanted) for t in case.x]
            y = [t.detach().requires_grad_("y" in wanted) for t in case.y]
            inputs = [t for t in [*x, *y] if t.requires_grad]
            torch.autograd.grad(objective(x, y, None), inputs)

    for order in needed:
        method = moreau(**case.paper, order=order)
        state = method.init(case.problem, case.x, case.y)
        bare, whole = [], []
        for _ in range(200 * repeats):
            begin = time.perf_counter()
            evaluations(order)
            middle = time.perf_counter()
            method.step(case.problem, case.x, case.y, state)
            bare.append(middle - begin)
            whole.append(time.perf_counter() - middle)
        ratio = statistics.median(whole) / statistics.median(bare)
        print(
            f"overhead, order {order}: a step takes {1e6 * statistics.median(whole):.0f} us, its bare evaluations "
            f"{1e6 * statistics.median(bare):.0f} us, ratio {ratio:.2f} (n = {len(whole)})"
        )
        found[order] = ratio
    return {"overhead": found}


def draws(per_n: int) -> dict[str, Any]:
    """(19) with a and all c_i drawn at random from [-4, 4]: the share that lands in the global basin."""
    generator, found = torch.Generator().manual_seed(0), {}
    for n in (1, 2, 5, 10, 50):
        rows = []
        for _ in range(per_n):
            a, c = (8 * torch.rand(2, generator=generator, dtype=torch.float64) - 4).tolist()
            case = sine(n, a, c)
            plain = solve(case.problem, case.x, case.y, moreau(), steps=600)
            better = solve(case.problem, case.x, case.y, moreau(), steps=600, debias=True)
            # wrong valleys have x at least 2 pi n / (1+n) away
            apart = abs(float(plain.x[0] - case.x_exact[0]))
            rows.append((a, c, apart, case.error(plain.x), case.error(better.x)))
        basin = sum(row[2] < math.pi * n / (1 + n) for row in rows)
        print(
            f"random (19), n = {n}: {basin}/{per_n} in the global basin, "
            f"{sum(row[3] < 1e-2 for row in rows)} below 1e-2, "
            f"{sum(row[4] < 1e-4 for row in rows)} below 1e-4 with the bias removed; "
            f"worst {max(row[3] for row in rows):.1e} and {max(row[4] for row in rows):.1e}"
        )
        print("   not below 1e-2:", [tuple(round(v, 3) for v in row) for row in rows if row[3] >= 1e-2])
        found[str(n)] = rows
    return {"draws": found}


def rates() -> dict[str, Any]:
    """R_k and phi - v along k for two p on (18) and (19), for the figure."""
    found: dict[str, Any] = {}
    for p in (0.25, 0.4):
        for title, case, constants in (
            ("(18)", merely_convex(10), {"alpha": 0.3, "beta": 0.3, "eta": 0.3, "gamma": 2.0, "c": 1.0}),
            ("(19)", sine(1, start=(1.0, 4.0)), {"alpha": 0.16, "beta": 0.1, "eta": 0.22, "gamma": 0.4, "c": 4.0}),
        ):
            method = moreau(**constants, p=p)
            x, y, state = case.x, case.y, method.init(case.problem, case.x, case.y)
            ks, totals, gaps, least = [], [], [], float("inf")
            for k in range(1001):
                if k % 20 == 0:
                    R = residual(
                        case.problem, x, y, constants["c"] * (k + 1) ** p, constants["gamma"], start=state.theta
                    )
                    least = min(least, R.total)
                    ks.append(k + 1), totals.append(least), gaps.append(max(R.gap, 1e-16))
                x, y, state, _ = method.step(case.problem, x, y, state)
            found[f"{title} p={p}"] = {"k": ks, "R": totals, "gap": gaps, "p": p}
    return {"rates": found}


def draw(path: Path, found: dict[str, Any]) -> None:
    """Writes error against CPU seconds for what was raced, and the rates."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    raced = {name: rows for name, rows in found.items() if isinstance(rows, list) and rows and "curve" in rows[0]}
    columns = 3
    count = len(raced) + len(found.get("rates", {}))
    if not count:
        return
    figure, axes = pyplot.subplots(
        -(-count // columns), columns, figsize=(15, 3.6 * -(-count // columns)), squeeze=False
    )
    places = iter(axes.flat)
    styles = ["-", "--", "-.", ":"]
    for name, rows in raced.items():
        place = next(places)
        for i, row in enumerate(row for row in rows if row["curve"]):
            seconds, errors = zip(*row["curve"])
            width = 2.2 if row["method"] == "moreau-gauss-seidel" else 0.9
            place.loglog(seconds, [max(e, 1e-16) for e in errors], styles[i % 4], label=row["method"], linewidth=width)
        place.set(title=name, xlabel="CPU seconds", ylabel="error of x", ylim=(1e-9, 1e2))
        place.legend(fontsize=6)
    for name, rate in found.get("rates", {}).items():
        place = next(places)
        k, p = rate["k"], rate["p"]
        place.loglog(k, rate["R"], "-", label="min R_k")
        place.loglog(k, rate["gap"], "--", label="phi - v")
        place.loglog(k, [rate["R"][1] * (j / k[1]) ** (-(1 - 2 * p) / 2) for j in k], ":", label="K^-(1-2p)/2")
        place.loglog(k, [rate["gap"][1] * (j / k[1]) ** -p for j in k], "-.", label="K^-p")
        place.set(title=f"rates {name}", xlabel="k")
        place.legend(fontsize=6)
    for place in places:
        place.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> int:
    """Runs the chosen tables."""
    tables = {
        "sine": sine_tables,
        "sizes": sizes_table,
        "quadratic": quadratic_tables,
        "lasso": lasso_tables,
        "group-lasso": group_lasso_tables,
        "overhead": overhead,
        "draws": lambda repeats: draws(4 * repeats),
        "rates": lambda repeats: rates(),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default=",".join(tables), help="comma-separated; default all: %(default)s")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--figure", type=Path, help="write a PNG here")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    given = parser.parse_args()
    unknown = set(given.tables.split(",")) - set(tables)
    if unknown or given.repeats < 1:
        parser.error(f"unknown tables {sorted(unknown)}" if unknown else "--repeats must be at least 1")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, float64, 1 thread, {given.repeats} repeats")
    found: dict[str, Any] = {}
    for name in given.tables.split(","):
        found |= tables[name](given.repeats)
        sys.stdout.flush()
    if given.figure:
        draw(given.figure, found)
    if given.json:
        given.json.write_text(json.dumps(found, sort_keys=True), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
