"""Are found cells better than random ones, or only larger? Predicted percentiles of both, at equal sizes.

    python scripts/study_cell_sizes.py RUN RUN ...      # folders of `nas-moreau search` in the DARTS space

Larger cells have higher percentiles, so a method that prefers large operations beats random cells by that alone. Random
cells of the same size are those whose parameters (network of 8 cells, 16 channels) are as many as those of the found
cells, up to one standard deviation of the latter. p is of permutations, two-sided, against them. Collapsed cells have
no percentile and count as 0.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from nas_moreau.architecture import Genotype, Network, load_genotype, load_space, parameter_count, percentile
from nas_moreau.report.significance import permutation_p_value
from nas_moreau.runs.configuration import read_config
from nas_moreau.search.random_cell import random_cell

Judged = tuple[int, float]
"""Parameters and percentile of a cell."""
FIRST_SEED = 3000


def judge(cell: Genotype) -> Judged:
    """Returns the parameters of a small network of the cell, and the mean of both percentiles."""
    found = percentile(cell)
    with torch.device("meta"):
        network = Network(cell, channels=16, layers=8, auxiliary=False)
    return parameter_count(network), 0.0 if found is None else found.mean


def of_size(found: list[Judged], others: list[Judged]) -> list[Judged]:
    """Returns those of `others` that are as large as `found`, up to one standard deviation."""
    sizes = [size for size, _ in found]
    middle, width = statistics.fmean(sizes), statistics.stdev(sizes)
    return [cell for cell in others if abs(cell[0] - middle) <= width]


def line(name: str, cells: list[Judged], reference: list[Judged] | None = None) -> str:
    """Returns a row in Markdown."""
    columns = [[float(cell[i]) for cell in cells] for i in (0, 1)]
    size, rank = (f"{statistics.fmean(v):,.{d}f} ± {statistics.stdev(v):,.{d}f}" for v, d in zip(columns, (0, 1)))
    p = None if reference is None else permutation_p_value(columns[1], [rank for _, rank in reference])
    return f"| {name} | {len(cells)} | {size} | {rank} | {'' if p is None else f'{p:.2g}'} |"


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--random", type=int, default=400, help="number of random cells")
    args = parser.parse_args()
    found: dict[str, list[Judged]] = {}
    for run in args.runs:
        method = read_config(run)["search"]["method"]
        found.setdefault(method, []).append(judge(load_genotype(run / "genotype.json")))
    space = load_space("darts")
    drawn = [judge(random_cell(space, FIRST_SEED + k)) for k in range(args.random)]
    print("| cells | n | parameters | percentile | p against random ones of the same size |\n|---|---|---|---|---|")
    print(line("random", drawn), flush=True)
    for method, cells in found.items():
        if len(cells) < 2 or len(same := of_size(cells, drawn)) < 2:
            raise SystemExit(f"{method}: give at least two runs, and more --random cells.")
        print(line(f"`{method}`", cells, same))
        print(line(f"random, of the size of `{method}`'s", same), flush=True)


if __name__ == "__main__":
    main()
