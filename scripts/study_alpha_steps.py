"""Why the update rule of the alphas matters: signal and noise of their gradients, measured in NAS-Bench-201 searches.

    python scripts/study_alpha_steps.py --data npz:cifar10.npz --table nb201.csv.gz --seeds 200-203

Every search is recorded step by step: the gradient of F in the mixing weights, and the envelope's difference
(grad_x f(x, y) - grad_x f(x, theta), as a gradient in the mixing weights too). Two tables follow in Markdown:

* by operation: the mean over all steps, and how many of its standard errors it is;
* the cells of the accumulated directions, as a step rule would accumulate them (as they are: mirror steps; each
  coordinate by its root mean square: Adam's normalisation; signs; ...), for one search and for the sums over several,
  which is what larger batches give. Accuracies are those of the table.

Records are kept in --output; the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas_moreau.architecture import derive, load_space
from nas_moreau.bilevel.simplex_steps import SMALLEST
from nas_moreau.compare.nas_bench_table import AccuracyColumn, load_table
from nas_moreau.config import load_config
from nas_moreau.data import load_images
from nas_moreau.search import search
from nas_moreau.search.methods import parse_methods
from nas_moreau.training.loop import Hook


def over(g: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Returns g divided by a root, and 0 where that is 0 (the first difference is)."""
    return g / np.sqrt(square).clip(min=1e-12)


RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is (mirror steps)": lambda g: g,
    "over the norm of the step": lambda g: over(g, (g**2).sum((1, 2), keepdims=True)),
    "over the norm of each edge": lambda g: over(g, (g**2).sum(2, keepdims=True)),
    "over each coordinate's root mean square (Adam)": lambda g: over(g, (g**2).mean(0)),
    "signs": np.sign,
}
"""What a rule does to the gradients (steps, edges, operations) before it adds them up."""


def record(config: Any, folder: Path, data: Any) -> None:
    """Runs one search and writes the gradients of its steps to `records.npz`."""
    found: dict[str, list[np.ndarray]] = {"F_x": [], "difference": []}
    weights: list[torch.Tensor] = []

    def before(job: Any) -> None:
        weights[:] = [torch.softmax(job.x[0].double(), -1).clamp(min=SMALLEST)]

    def after(job: Any, info: Any) -> None:
        for name, kept in found.items():
            if name in info.terms:
                kept.append((info.terms[name][0].double() / weights[0]).cpu().numpy().astype(np.float32))

    shutil.rmtree(folder, ignore_errors=True)
    result = search(config, folder, data=data, hooks=[Hook(before_step=before, on_step=after)])
    seconds = np.array(result.wall_seconds)
    np.savez_compressed(
        folder / "records.npz", seconds=seconds, **{name: np.stack(kept) for name, kept in found.items()}
    )


def accuracy(score: np.ndarray, column: AccuracyColumn) -> float:
    """Returns the table's accuracy, in percent, of the cell of the greatest scores (edges, operations)."""
    space = load_space("nas_bench_201")
    return 100 * column.of(derive(space, {"cell": score.tolist()}))


def by_operation(runs: list[dict[str, np.ndarray]], operations: list[str]) -> list[list[str]]:
    """Returns, for each operation, mean * 1000 and its size in standard errors of one search, averaged over edges."""
    rows = []
    for k, name in enumerate(operations):
        row = [name]
        for term in ("F_x", "difference"):
            steps = np.concatenate([run[term] for run in runs if run[term].size])
            centred = steps - steps.mean(2, keepdims=True)
            mean, error = centred.mean(0)[:, k], centred.std(0)[:, k] / np.sqrt(len(runs[0][term]))
            row += [f"{1000 * mean.mean():+.2f}", f"{np.abs(mean / error).mean():.2f}"]
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10 as `nas-moreau --data` takes it")
    parser.add_argument("--table", required=True, help="NAS-Bench-201 as CSV")
    parser.add_argument("--column", default="c10_test_200ep")
    parser.add_argument("--seeds", default="200-203")
    parser.add_argument("--output", default="checkpoints/alpha_steps")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    table, base = load_table(args.table), ["search.alphas.rule=mirror", *args.overrides]
    column = AccuracyColumn(table, table.pick_column(args.column))
    seeds = parse_methods("moreau", args.seeds)["moreau"]
    runs = []
    for seed in seeds:
        extra = [f"data.name={args.data}", f"seed={seed}", "search.method=moreau"]
        config = load_config("nas_bench_201_cpu", overrides=[*base, *extra])
        folder = Path(args.output) / f"seed{seed}"
        if not (folder / "records.npz").exists():
            record(config, folder, load_images(config))
        with np.load(folder / "records.npz") as stored:
            runs.append(dict(stored))
    operations = list(load_space("nas_bench_201").operations)
    seconds = np.mean([run["seconds"] for run in runs])
    print(f"Seeds {args.seeds}, {len(runs[0]['F_x'])} steps, {seconds:.0f} s a search.\n")
    print("| operation | F, mean x 1000 | in errors | difference, mean x 1000 | in errors |\n|---|---:|---:|---:|---:|")
    print("\n".join(f"| {' | '.join(row)} |" for row in by_operation(runs, operations)))
    counts = [k for k in (1, 2, 3, 4) if k <= len(runs)]
    print(f"\n| direction | accumulated | {' | '.join(f'{k} searches: mean, min' for k in counts)} |")
    print(f"|---|---|{'---:|' * len(counts)}")
    for title, terms in (("F", ("F_x",)), ("F + difference", ("F_x", "difference")), ("difference", ("difference",))):
        for name, rule in RULES.items():
            sums = [-rule(sum(run[term].astype(float) for term in terms)).sum(0) for run in runs]
            cells = []
            for k in counts:
                found = [accuracy(sum(chosen), column) for chosen in itertools.combinations(sums, k)]
                cells.append(f"{np.mean(found):.2f}, {min(found):.2f}")
            print(f"| {title} | {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
