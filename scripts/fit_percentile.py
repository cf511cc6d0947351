"""Fits the two models behind `architecture.percentile` to a table of accuracies of DARTS cells; prints what they reach.

    python scripts/fit_percentile.py darts_cells.csv.gz [--output FILE] [--random 10000]

Columns of the table: `genotype` (JSON: cell name -> [operation, input] pairs, two for each node), `source`, `kind`
("surrogate" or "real"), `accuracy` (per cent). Both models are fitted to the surrogate rows alone: a ridge regression,
and regression trees by gradient boosting (Friedman, 2001; 2002 for the random half of the rows that each tree sees).
Penalty and number of trees are those with the best Kendall's tau in five-fold cross-validation; real trainings choose
nothing. The output (by default the file in the package) has coefficients, quantiles of the predictions for random
cells and of the percentiles of random cells about as large, and the taus. The rows of the table are not part of it.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import gzip
import itertools
import json
import math
import random
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nas_moreau.architecture import Cell, Genotype, Network, SearchSpace, load_space
from nas_moreau.architecture.networks.costs import network_costs
from nas_moreau.architecture.spaces.percentile import (
    COEFFICIENTS,
    MODELS,
    OPERATIONS,
    features,
    parameters,
    percentile_of,
    predict,
    why_no_percentile,
)
from nas_moreau.architecture.spaces.skeletons import DARTS
from nas_moreau.report.significance import kendall_tau

PENALTIES = (10.0, 30.0, 100.0, 300.0)
TREES = (100, 200, 400, 600, 800)
RATE, DEPTH, SMALLEST_LEAF, SHARE, SHRINKAGE = 0.1, 2, 10, 0.5, 1.0
"""Learning rate, splits on the way to a leaf, rows in it, share of rows that a tree sees, penalty of its value."""
FOLDS, QUANTILES, DIGITS = 5, 1001, 6
SIZE_STEP, SIZE_QUANTILES, SMALLEST_GROUP, FAVOURS = 100_000, 101, 50, 5 * (-4e-6, 0.0, 4e-6)
"""Of the percentiles by size: parameters between sizes, quantiles for each, cells that a size must have, and for how
many cells (each --random) operations are favoured by how much, an exponent for each parameter."""
PUBLISHED_SIZE = {"channels": 36, "layers": 20, "auxiliary": False}
CONCAT = (2, 3, 4, 5)
PROVENANCE = {
    "surrogate": "NAS-Bench-301 (Zela et al., ICLR 2022): predicted validation accuracy of random cells on CIFAR-10 "
    "(100 epochs, 32 channels, 8 cells), recorded in the history of automl/NASLib",
    "licence": "Apache-2.0",
    "real": "test accuracies on CIFAR-10 after 600 epochs: MAC-AutoML/XNAS (xnas_search), lightaime/sgas "
    "(sgas_search), papers and repositories of well-known cells (published)",
}


class Row(NamedTuple):
    """A row of the table."""

    genotype: Genotype
    source: str
    surrogate: bool
    accuracy: float


class Booster(NamedTuple):
    """Gradient-boosted trees: their intercept and the trees in order."""

    intercept: float
    trees: list[Any]


def read_rows(path: Path) -> list[Row]:
    """Returns the rows of the table whose cells can have a percentile."""
    rows = []
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            cells = {
                name: Cell(
                    tuple((operation, source, 2 + i // 2) for i, (operation, source) in enumerate(pairs)), CONCAT
                )
                for name, pairs in json.loads(line["genotype"]).items()
            }
            row = Row(Genotype("darts", cells), line["source"], line["kind"] == "surrogate", float(line["accuracy"]))
            if known(row.genotype):
                rows.append(row)
    return rows


def known(cell: Genotype) -> bool:
    """Whether a cell can have a percentile."""
    return why_no_percentile(cell) is None


def fit_ridge(x: np.ndarray, y: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
    """Returns intercept and coefficients of min |y - b - x w|^2 + penalty |w s|^2, s: standard deviations of x."""
    mean, std = x.mean(0), x.std(0)
    z = np.divide(x - mean, std, out=np.zeros_like(x), where=std > 0)
    scaled = np.linalg.solve(z.T @ z + penalty * np.eye(z.shape[1]), z.T @ (y - y.mean()))
    weights = np.divide(scaled, std, out=np.zeros_like(scaled), where=std > 0)
    return float(y.mean() - mean @ weights), weights


def boost(x: np.ndarray, y: np.ndarray, trees: int) -> Booster:
    """Returns trees fitted one after another to the residuals of those before, each to a random half of the rows."""
    columns = [(j, float(t)) for j in range(x.shape[1]) for v in [np.unique(x[:, j])] for t in (v[:-1] + v[1:]) / 2]
    above = np.stack([x[:, j] > t for j, t in columns], 1).astype(float)
    draw, intercept, found = np.random.default_rng(0), float(y.mean()), []
    residual = y - intercept
    for _ in range(trees):
        rows = np.sort(draw.permutation(len(y))[: max(1, int(SHARE * len(y)))])
        found.append(_grow(above, columns, residual, rows, DEPTH))
        residual = residual - _values(found[-1], x)
    return Booster(intercept, found)


def _grow(
    above: np.ndarray, columns: Sequence[tuple[int, float]], residual: np.ndarray, rows: np.ndarray, depth: int
) -> Any:
    """Returns the tree of the splits that reduce the squared error most; see `percentile.Tree`."""
    total, count = residual[rows].sum(), len(rows)
    value = round(float(RATE * total / (count + SHRINKAGE)), DIGITS)
    if not depth or not columns:
        return value
    inside = above[rows]
    high, summed = inside.sum(0), residual[rows] @ inside
    gain = summed**2 / (high + SHRINKAGE) + (total - summed) ** 2 / (count - high + SHRINKAGE)
    gain[np.minimum(high, count - high) < SMALLEST_LEAF] = -np.inf
    best = int(gain.argmax())
    if gain[best] <= total**2 / (count + SHRINKAGE):
        return value
    split = inside[:, best] > 0
    parts = (_grow(above, columns, residual, rows[side], depth - 1) for side in (~split, split))
    return [*columns[best], *parts]


def _values(tree: Any, x: np.ndarray) -> np.ndarray:
    if isinstance(tree, float):
        return np.full(len(x), tree)
    feature, threshold, low, high = tree
    return np.where(x[:, feature] > threshold, _values(high, x), _values(low, x))


def staged(model: Booster, x: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the predictions after every tree."""
    total = np.full(len(x), model.intercept)
    for tree in model.trees:
        total = total + _values(tree, x)
        yield total


def cross_validate(x: np.ndarray, y: np.ndarray) -> tuple[float, int, dict[str, np.ndarray]]:
    """Returns the best penalty, the best number of trees, and the out-of-fold predictions of each model with them."""
    fold = np.random.default_rng(0).permutation(len(y)) % FOLDS
    ridge = {penalty: np.zeros(len(y)) for penalty in PENALTIES}
    trees = {count: np.zeros(len(y)) for count in TREES}
    for k in range(FOLDS):
        out = fold == k
        for penalty, found in ridge.items():
            intercept, weights = fit_ridge(x[~out], y[~out], penalty)
            found[out] = intercept + x[out] @ weights
        for i, values in enumerate(staged(boost(x[~out], y[~out], max(TREES)), x[out]), 1):
            if i in trees:
                trees[i][out] = values
    penalty, count = (max(found, key=lambda key: kendall_tau(found[key], y) or 0.0) for found in (ridge, trees))
    return penalty, count, {"ridge": ridge[penalty], "trees": trees[count]}


def taus(predictions: dict[str, Sequence[float]], rows: Sequence[Row]) -> dict[str, Any]:
    """Returns `n` and Kendall's tau-b of each model, over the pairs of rows of one source."""
    names = sorted({row.source for row in rows})
    groups = [[i for i, row in enumerate(rows) if row.source == name] for name in names]
    found: dict[str, Any] = {"n": len(rows)}
    for name, values in predictions.items():
        parts = [kendall_tau([values[i] for i in g], [rows[i].accuracy for i in g]) or 0.0 for g in groups]
        pairs = [len(g) * (len(g) - 1) / 2 for g in groups]
        found[name] = round(float(np.average(parts, weights=pairs)), 3)
    return found


def linear_parameters(space: SearchSpace) -> tuple[int, dict[str, int]]:
    """Returns the parameters of the published network without operations, and what each adds, by feature."""
    base, added = network_costs(space, partial(Network, **PUBLISHED_SIZE), (3, 32, 32))
    found: dict[str, int] = {}
    for cell, name in itertools.product(space.cells, OPERATIONS):
        by_edge = {edge: added[cell, i, name][0] for i, edge in enumerate(space.edges)}
        elsewhere, from_input = by_edge[2, 3], by_edge[0, 2]
        found |= {f"{cell} {name}": elsewhere, f"{cell} {name} from an input": from_input - elsewhere}
    return base[0], {name: count for name, count in found.items() if count}


def favoured(genotype: Genotype, favour: float, added: dict[str, int], rng: random.Random) -> Genotype:
    """Returns the cells with operations drawn again, the weight of each exp(favour * its parameters).

    The weight of a whole genotype then depends on its size alone: those of one size are equally probable, as they are
    among uniformly random ones, but there are enough of the rare sizes.
    """
    cells = {}
    for name, cell in genotype.cells.items():
        edges = []
        for _, source, target in cell.edges:
            where = ("", " from an input") if source < DARTS.inputs else ("",)
            counts = [sum(added.get(f"{name} {operation}{w}", 0) for w in where) for operation in OPERATIONS]
            edges.append((*rng.choices(OPERATIONS, [math.exp(favour * count) for count in counts]), source, target))
        cells[name] = Cell(tuple(edges), cell.concat)
    return Genotype(genotype.space, cells)


def quantiles_by_size(sizes: np.ndarray, values: np.ndarray) -> dict[str, Any]:
    """Returns `first`, `step` and `quantiles` of `percentile.among_size` from cells with these sizes and values."""
    found: dict[int, list[float]] = {}
    place = np.round(sizes / SIZE_STEP).astype(int)
    for k in range(place.min(), place.max() + 1):
        if (place == k).sum() >= SMALLEST_GROUP:
            found[k] = np.quantile(values[place == k], np.linspace(0, 1, SIZE_QUANTILES)).round(1).tolist()
    if list(found) != list(range(min(found), max(found) + 1)):
        raise SystemExit("Some sizes between others have too few cells: draw more (--random).")
    return {"first": min(found) * SIZE_STEP, "step": SIZE_STEP, "quantiles": list(found.values())}


def main() -> None:
    """Fits, writes the file and prints the taus."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--output", type=Path, default=COEFFICIENTS)
    parser.add_argument("--random", type=int, default=10_000, metavar="N", help="random cells (default 10,000)")
    args = parser.parse_args()

    rows = read_rows(args.table)
    surrogate = [row for row in rows if row.surrogate]
    values = [features(row.genotype) for row in surrogate]
    names, y = list(values[0]), np.array([row.accuracy for row in surrogate])
    x = np.array([list(found.values()) for found in values])
    penalty, count, out_of_fold = cross_validate(x, y)
    intercept, weights = fit_ridge(x, y, penalty)
    booster = boost(x, y, count)
    model: dict[str, Any] = {
        "features": names,
        "ridge": {"intercept": round(intercept, DIGITS), "coefficients": [round(float(w), DIGITS) for w in weights]},
        "trees": {"intercept": round(booster.intercept, DIGITS), "trees": booster.trees},
    }

    space, rng = load_space("darts"), random.Random(0)
    drawn = [space.random_genotype(rng) for _ in range(args.random)]
    reference = [predict(features(cell), model) for cell in drawn if known(cell)]
    steps = np.linspace(0, 1, QUANTILES)
    model["quantiles"] = {
        name: [round(float(q), DIGITS) for q in np.quantile([found[name] for found in reference], steps)]
        for name in MODELS
    }

    base, added = linear_parameters(space)
    cells = [favoured(space.random_genotype(rng), favour, added, rng) for favour in FAVOURS for _ in range(args.random)]
    others = [features(cell) for cell in cells if known(cell)]
    model["sizes"] = {"base": base, "added": added}
    sizes = np.array([parameters(values, model["sizes"]) for values in others])
    table = np.array([list(found.values()) for found in others])
    by_ridge = model["ridge"]["intercept"] + table @ np.array(model["ridge"]["coefficients"])
    *_, by_trees = staged(Booster(model["trees"]["intercept"], model["trees"]["trees"]), table)
    both = [[percentile_of(v, model["quantiles"][k]) for v in f] for k, f in (("ridge", by_ridge), ("trees", by_trees))]
    model["sizes"] |= quantiles_by_size(sizes, np.mean(both, 0))

    def percentiles(predicted: dict[str, Sequence[float]]) -> dict[str, Sequence[float]]:
        found = {name: [percentile_of(v, model["quantiles"][name]) for v in predicted[name]] for name in MODELS}
        return found | {"mean": [sum(pair) / 2 for pair in zip(*found.values())]}

    def predicted(some: Sequence[Row]) -> dict[str, Sequence[float]]:
        found = [predict(features(row.genotype), model) for row in some]
        return {name: [values[name] for values in found] for name in MODELS}

    agreement = {"cross_validated": taus(percentiles(out_of_fold), surrogate)}
    real = [row for row in rows if not row.surrogate]
    by_source = {name: [row for row in real if row.source == name] for name in dict.fromkeys(r.source for r in real)}
    for name, some in (by_source | {"real": real}).items():
        agreement[name] = taus(percentiles(predicted(some)), some)

    provenance = PROVENANCE | {"command": f"python scripts/fit_percentile.py {args.table.name}"}
    provenance |= {"date": str(datetime.date.today()), "penalty": penalty, "random_cells": len(reference)}
    text = json.dumps({"provenance": provenance, "agreement": agreement, **model}, separators=(",", ":"))
    args.output.write_text(text + "\n", encoding="utf-8")
    print(f"ridge: penalty {penalty:g}, {len(names)} features; trees: {count}; {len(text):,} bytes in {args.output}")
    for name, line in agreement.items():
        shown = ", ".join(f"{model_name} {line[model_name]:.3f}" for model_name in (*MODELS, "mean"))
        print(f"Kendall's tau, {name} (n = {line['n']:,}): {shown}")


if __name__ == "__main__":
    main()
