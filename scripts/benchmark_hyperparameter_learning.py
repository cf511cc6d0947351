"""The published table of hyper-parameter learning again (MEHA, Table 5): data hyper-cleaning and few-shot learning.

    python scripts/benchmark_hyperparameter_learning.py --data fashion_mnist --tables hyper-cleaning
    python scripts/benchmark_hyperparameter_learning.py --omniglot omniglot:DIR --tables few-shot --ways 5,10
    python scripts/benchmark_hyperparameter_learning.py --quick          # generated images, a minute, no result of note

Every method gets the same budget of gradient evaluations; methods take turns within each seed. Each row is a run folder
under --output: stopped at any moment, the same command goes on where it was. Times are CPU seconds of the method's own
steps, in this process with one thread; "to goal" is the time until test accuracy was first seen at --goal, looked at
about twenty times a run ("-": a seed never got there).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from nas_moreau.bilevel.methods import METHODS
from nas_moreau.data import load_data
from nas_moreau.problems.step_sizes import TUNED, tuned_step_sizes
from nas_moreau.problems.tasks import solve_on_data
from nas_moreau.runs.environment import processor_name

PUBLISHED = {
    "hyper-cleaning": "published (Fashion-MNIST; accuracy, F1): RHG 80.87 88.67; BOME 82.16 85.01; V-PBGD 81.72 89.93; "
    "MEHA 83.19 89.94",
    "few-shot": "published (all of Omniglot, meta-batch 16; 10-way / 20-way accuracy): RHG 89.77 / 90.17; BAMM 90.57 / "
    "90.13; BOME 89.76 / 89.49; MEHA 91.17 / 89.96",
}

COMPARED = (
    "moreau",
    "moreau-auto",
    "moreau-paper",
    "rhg",
    "rhg-truncated",
    "implicit-cg",
    "neumann",
    "bome",
    "v-pbgd",
    "f2sa",
    "lower-only",
)

Row = dict[str, Any]


def runs(
    task: str, options: dict[str, Any], methods: Sequence[str], seeds: Sequence[int], place: Path, budget: int
) -> list[Row]:
    """Returns the results of all methods and seeds; those that are finished in `place` are read."""
    data = load_data(**{"spec" if key == "name" else key: value for key, value in options["data"].items()})
    found = []
    for seed in seeds:
        for method in methods:
            steps = max(1, budget // METHODS[method].count(tuned_step_sizes(task, 1, METHODS[method])))
            here = options | {"method": method, "seed": seed, "steps": steps}
            result = solve_on_data(task, here, place / f"{method}-seed{seed}", resume=True, data=data)
            found.append(result)
            score = "" if result.get("f1") is None else f", F1 {100 * result['f1']:.2f} %"
            print(
                f"  {place.name} {method} seed {seed}: {100 * result['accuracy']:.2f} %{score}, "
                f"{result['cpu_seconds']:.1f} CPU s",
                file=sys.stderr,
                flush=True,
            )
    return found


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Returns mean +- sample standard deviation."""
    deviation = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def to_goal(result: Row, goal: float) -> float | None:
    """Returns the CPU seconds at the first measurement that reached the goal."""
    return next((point["cpu_seconds"] for point in result["curve"] if point["accuracy"] >= goal), None)


def table(title: str, task: str, results: list[Row], goal: float) -> None:
    """Prints a table with one row a method."""
    score = "F1 %" if task == "hyper-cleaning" else "95 % interval of a run"
    print(f"\n{title}\n{PUBLISHED[task]}\n")
    print(f"| method | accuracy % | {score} | n | evaluations | CPU s | CPU s to {100 * goal:g} % |")
    print("|---|---|---|---|---|---|---|")
    for method in dict.fromkeys(result["method"] for result in results):
        own = [result for result in results if result["method"] == method]
        if task == "hyper-cleaning":
            second = "-" if own[0]["f1"] is None else spread([100 * result["f1"] for result in own])
        else:
            second = f"+- {100 * statistics.fmean(result['interval'] for result in own):.2f}"
        times = [to_goal(result, goal) for result in own]
        reached = [t for t in times if t is not None]
        arrived = spread(reached, 1) if len(reached) == len(own) else "-"
        print(
            f"| {method} | {spread([100 * result['accuracy'] for result in own])} | {second} | {len(own)} | "
            f"{own[0]['evaluations']} | {spread([result['cpu_seconds'] for result in own], 1)} | {arrived} |"
        )


def main() -> int:
    """Runs the chosen tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", default="hyper-cleaning,few-shot", help="comma-separated; default: %(default)s")
    parser.add_argument("--data", default="fashion_mnist", help="for hyper-cleaning; default: %(default)s")
    parser.add_argument("--omniglot", default="omniglot", help="for few-shot; default: %(default)s")
    parser.add_argument("--data-dir", default="data", help="where torchvision's data sets lie")
    parser.add_argument("--download", action="store_true", help="allow torchvision to fetch them")
    parser.add_argument("--methods", help="comma-separated; default: those of the page")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--n", type=int, default=5000, help="training samples of hyper-cleaning, and for validation")
    parser.add_argument("--corrupt", type=float, default=0.5)
    parser.add_argument("--ways", default="5,10")
    parser.add_argument("--shots", default="1,5")
    parser.add_argument("--budget", type=int, nargs=2, default=(600, 6000), metavar=("CLEANING", "FEW-SHOT"))
    parser.add_argument("--goal", type=float, nargs=2, default=(0.82, 0.8), metavar=("CLEANING", "FEW-SHOT"))
    parser.add_argument("--output", type=Path, default=Path("checkpoints/hyperparameter_learning"))
    parser.add_argument("--json", type=Path, help="write all results here")
    parser.add_argument("--quick", action="store_true", help="generated images and tiny budgets: does it run?")
    given = parser.parse_args()
    tables = given.tables.split(",")
    if unknown := set(tables) - set(TUNED):
        parser.error(f"unknown tables {sorted(unknown)}; known: {', '.join(TUNED)}")
    seeds, ways, shots = ([int(word) for word in text.split(",")] for text in (given.seeds, given.ways, given.shots))
    n, output, budgets = given.n, given.output, given.budget
    if given.quick:
        given.data = given.omniglot = "shapes"
        seeds, ways, shots, n, budgets, output = [0, 1], [2], [1], 200, (30, 30), output / "quick"
    torch.set_num_threads(1)
    print(f"{processor_name()}, {os.cpu_count()} cores, 1 thread used, torch {torch.__version__}, seeds {seeds}")
    everything: dict[str, list[Row]] = {}
    for task in tables:
        compared = [*COMPARED, *(["upper-only"] if task == "hyper-cleaning" else [])]
        methods = given.methods.split(",") if given.methods else compared
        which = tables_of(task, given.corrupt, n, ways, shots)
        budget, goal = (part[list(TUNED).index(task)] for part in (budgets, given.goal))
        for name, title, own in which:
            data = given.data if task == "hyper-cleaning" else given.omniglot
            images = {"name": data, "directory": given.data_dir, "download": given.download}
            options = own | {"data": images, "device": "cpu"}
            results = runs(task, options, methods, seeds, output / name, budget)
            table(f"{title} on {data}", task, results, goal)
            everything[name] = results
    if given.json:
        given.json.write_text(json.dumps(everything, sort_keys=True), encoding="utf-8")
    return 0


def tables_of(
    task: str, corrupt: float, n: int, ways: list[int], shots: list[int]
) -> list[tuple[str, str, dict[str, Any]]]:
    """Returns (folder name, title, options) of each table of a task."""
    if task == "hyper-cleaning":
        title = f"hyper-cleaning, {100 * corrupt:g} % of {n} labels corrupted"
        return [(f"cleaning-{n}-{corrupt:g}", title, {"corrupt": corrupt, "n": n})]
    return [
        (f"few-shot-{w}-{k}", f"{w}-way {k}-shot, held-out alphabets or classes", {"ways": w, "shots": k})
        for w in ways
        for k in shots
    ]


if __name__ == "__main__":
    raise SystemExit(main())
