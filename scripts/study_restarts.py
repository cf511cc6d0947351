"""What the mean of several searches finds: cells from the mean softmax weights of searches that were run already.

    python scripts/study_restarts.py COMPARISON --table nb201.csv.gz      # the folder of `nas-moreau compare`
    python scripts/study_restarts.py RUN RUN RUN ...                      # folders of `nas-moreau search`

For each method, epoch and number of searches, sets of that many searches are drawn without replacement (all sets, if
they are few), their weights at the end of the epoch are averaged, and the cell of the mean is judged: by the accuracy
in the table, or in the DARTS space by its predicted percentile (the mean of both models; a collapsed cell has none and
counts as 0). Sets share searches: the spread is that of the sets, not an error of the mean.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import random
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

from nas_moreau.architecture import AlphaTable, Genotype, derive, load_space, percentile
from nas_moreau.compare.nas_bench_table import AccuracyColumn, load_table
from nas_moreau.runs.configuration import read_config

Searches = dict[str, list[dict[int, AlphaTable]]]
"""Method -> for every search: epoch -> weights."""


def read_searches(folders: list[Path]) -> tuple[str, int, Searches]:
    """Returns space, steps of an epoch, and the weights of every search in these folders or their `searches`."""
    found: Searches = {}
    spaces, steps = set(), set()
    for folder in folders:
        inner = sorted((folder / "searches").iterdir()) if (folder / "searches").is_dir() else [folder]
        for run in inner:
            if not ((run / "result.json").is_file() and (run / "alphas.csv").is_file()):
                continue
            config = read_config(run)
            spaces.add(str(config["space"]))
            steps.add(int(config["search"]["steps_per_epoch"] or 0))
            with (run / "alphas.csv").open(newline="", encoding="utf-8") as file:
                tables = AlphaTable.from_rows(csv.DictReader(file))
            found.setdefault(config["search"]["method"], []).append(tables)
    if len(spaces) != 1 or len(steps) != 1:
        raise SystemExit("Give finished searches of one space, with search.steps_per_epoch, all alike.")
    return spaces.pop(), steps.pop(), found


def sets(count: int, size: int, most: int) -> list[tuple[int, ...]]:
    """Returns the sets of `size` numbers below `count`: all of them, or `most` that are drawn."""
    if math.comb(count, size) <= most:
        return list(itertools.combinations(range(count), size))
    draw = random.Random(size)
    return [tuple(draw.sample(range(count), size)) for _ in range(most)]


def rows(
    name: str, searches: Searches, judge: Callable[[Genotype], float], sizes: list[int], draws: int
) -> Iterator[list[object]]:
    """Yields method, epoch, searches, sets, mean, standard deviation and minimum."""
    space = load_space(name)
    for method, runs in searches.items():
        for epoch in sorted(set.intersection(*(set(run) for run in runs))):
            for size in (size for size in sizes if size <= len(runs)):
                chosen = sets(len(runs), size, draws)
                means = [AlphaTable.mean([runs[k][epoch] for k in each]) for each in chosen]
                values = [judge(derive(space, table)) for table in means]
                spread = statistics.stdev(values) if len(values) > 1 else None
                yield [method, epoch, size, len(values), statistics.fmean(values), spread, min(values)]


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--table", type=Path, help="NAS-Bench-201's accuracies")
    parser.add_argument("--column")
    parser.add_argument("--sizes", default="1,2,3,5,8", help="numbers of searches")
    parser.add_argument("--draws", type=int, default=60, help="sets of searches, at most")
    args = parser.parse_args()
    name, steps, searches = read_searches(args.folders)

    def rank(cell: Genotype) -> float:
        found = percentile(cell)
        return 0.0 if found is None else found.mean

    judge = rank
    if args.table is not None:
        table = load_table(args.table)
        column = AccuracyColumn(table, table.pick_column(args.column))

        def judge(cell: Genotype) -> float:
            return 100 * column.of(cell)

    print("| method | steps | searches | sets | mean ± std | min |\n|---|---|---|---|---|---|")
    sizes = [int(size) for size in args.sizes.split(",")]
    for method, epoch, size, count, mean, spread, least in rows(name, searches, judge, sizes, args.draws):
        shown = f"{mean:.2f}" + ("" if spread is None else f" ± {spread:.2f}")
        print(f"| `{method}` | {steps * (epoch + 1)} | {size} | {count} | {shown} | {least:.2f} |", flush=True)


if __name__ == "__main__":
    main()
