"""The predicted quality of a cell of the DARTS space: its percentile among random cells. Imports no torch.

Two models predict an accuracy from the operations and the shape of both cells: a ridge regression and gradient-boosted
regression trees. `scripts/fit_percentile.py` fitted them to predictions of NAS-Bench-301's surrogate for random cells;
darts_percentile.json holds their coefficients, the quantiles of their predictions for random cells, and how well they
rank cells that were really trained. A percentile ranks cells about as well as one real training does. It is not an
accuracy, and it takes a few milliseconds.

Larger cells have higher percentiles, so a second one says where a cell stands among random cells of its size.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from math import floor
from pathlib import Path
from typing import Any

from nas_moreau.architecture.spaces.genotype import Cell, Genotype
from nas_moreau.architecture.spaces.skeletons import DARTS
from nas_moreau.architecture.spaces.space_rules import all_edges
from nas_moreau.errors import InputError

OPERATIONS = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""The operations of the cells that the models were fitted to."""
NODES, EDGES_PER_NODE = 4, 2
MOST_SKIPS = 4
"""Skip connections of a normal cell beyond which it has collapsed: no measured cell has more, and models extrapolate
the wrong way there."""
MODELS = ("ridge", "trees")
SIZE = (
    "Larger cells have higher percentiles, so that a method which prefers large operations is above random cells by "
    "that alone. Of its size: among random cells with as many parameters (36 channels, 20 cells)."
)
"""What the second percentile is for."""
COEFFICIENTS = Path(__file__).with_name("darts_percentile.json")

Tree = float | Sequence[Any]
"""A leaf's value, or (number of a feature, threshold, tree if the feature is at most the threshold, tree if not)."""


@dataclass(frozen=True)
class Percentile:
    """Predicted percentiles of a cell among uniformly random cells of the DARTS space.

    Attributes:
        ridge: By the ridge regression, 0..100.
        trees: By the regression trees, 0..100.
        of_size: The percentile of `mean` among random cells with as many parameters, 0..100; None if hardly any random
            cell is as small or as large. Random cells of every size have 50 on average.
        parameters: Of the network of the published size (36 channels, 20 cells), without an auxiliary head.
        tau: Kendall's tau of the mean of both with accuracies of real trainings; 0 is chance, and a second training of
            the same cells reaches about 0.5.
        n: Number of those trainings.
    """

    ridge: float
    trees: float
    of_size: float | None
    parameters: int
    tau: float
    n: int

    @property
    def mean(self) -> float:
        """Mean of both models."""
        return (self.ridge + self.trees) / 2

    @property
    def disagreement(self) -> float:
        """Distance between both models: the uncertainty for cells unlike those that they were fitted to."""
        return abs(self.ridge - self.trees)

    def __str__(self) -> str:
        of_size = "-" if self.of_size is None else f"{self.of_size:.0f}"
        size = f"{self.parameters / 1e6:.1f} M parameters"
        return f"{self.mean:.0f} (ridge {self.ridge:.0f}, trees {self.trees:.0f}), of its size ({size}) {of_size}"

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data: `mean ridge trees of_size parameters tau n disagreement`."""
        return {"mean": self.mean, **asdict(self), "disagreement": self.disagreement}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Percentile:
        """Returns the percentile that `to_dict` wrote."""
        return cls(**{field.name: data[field.name] for field in fields(cls)})


def percentile(genotype: Genotype) -> Percentile | None:
    """Returns the predicted percentile of a cell; None for cells unlike all that the models were fitted to.

    Args:
        genotype: A genotype of any space; `why_no_percentile` gives the reason for None.

    Example:
        >>> from nas_moreau.architecture import load_genotype
        >>> round(percentile(load_genotype("PC_DARTS_cifar")).mean)
        100
    """
    if why_no_percentile(genotype) is not None:
        return None
    model, values = coefficients(), features(genotype)
    ridge, trees = (percentile_of(value, model["quantiles"][name]) for name, value in predict(values, model).items())
    size = parameters(values, model["sizes"])
    of_size = among_size((ridge + trees) / 2, size, model["sizes"])
    real = agreement()["real"]
    return Percentile(ridge, trees, of_size, size, real["mean"], real["n"])


def why_no_percentile(genotype: Genotype) -> str | None:
    """Returns why a genotype has no percentile, as the end of a sentence; None if it has one.

    Args:
        genotype: A genotype of any space.
    """
    if genotype.skeleton != DARTS:
        return f"its cells are of the skeleton {genotype.skeleton}, and the models know cells of the DARTS space"
    for name, cell in genotype.cells.items():
        if unknown := {operation for operation, _, _ in cell.edges} - set(OPERATIONS):
            return f"the models know no {', '.join(sorted(unknown))}"
        nodes = range(DARTS.inputs, DARTS.inputs + NODES)
        sources = {node: [a for _, a, b in cell.edges if b == node] for node in nodes}
        regular = all(len(set(into)) == len(into) == EDGES_PER_NODE for into in sources.values())
        if not regular or len(cell.edges) != NODES * EDGES_PER_NODE or cell.concat != tuple(nodes):
            return f"its {name} cell does not have the {NODES} nodes with {EDGES_PER_NODE} edges of the DARTS space"
    skips = sum(operation == "skip_connect" for operation, _, _ in genotype.cells["normal"].edges)
    if skips > MOST_SKIPS:
        return f"its normal cell has collapsed: {skips} of {NODES * EDGES_PER_NODE} edges are skip connections"
    return None


def percentile_text(genotype: Genotype) -> str | None:
    """Returns the percentiles of a genotype and their limit, in one line; None if it has none.

    Args:
        genotype: A genotype of any space.
    """
    found = percentile(genotype)
    if found is None:
        return None
    return f"{found}; tau with real trainings {found.tau:.2f}"


def limit() -> str:
    """Returns in two sentences what a percentile is worth."""
    real, surrogate = agreement()["real"], agreement()["cross_validated"]
    return (
        f"A percentile is a prediction and not an accuracy: Kendall's tau with {real['n']} real trainings is "
        f"{real['mean']:.2f}, about that of one real training (0.4 to 0.5). Two models of NAS-Bench-301's surrogate "
        f"(tau {surrogate['mean']:.2f}, cross-validated); their distance is its uncertainty."
    )


def agreement() -> dict[str, dict[str, Any]]:
    """Returns Kendall's tau by source of accuracies, each with `n` and the taus `ridge`, `trees` and `mean`.

    The sources: "cross_validated" (rows of the surrogate, out of fold), each source of real trainings, and "real": all
    of those together, pairs within one source alone.
    """
    return coefficients()["agreement"]


@cache
def coefficients() -> dict[str, Any]:
    """Returns the models, quantiles and provenance of darts_percentile.json; do not modify it.

    Raises:
        InputError: The file is damaged.
    """
    try:
        return json.loads(COEFFICIENTS.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{COEFFICIENTS} cannot be read ({error}).", "Reinstall nas_moreau.") from error


# --- the models ------------------------------------------------------------------------------------------------------


def features(genotype: Genotype) -> dict[str, float]:
    """Returns what the models know of a genotype of the DARTS space, by name; the order of edges does not matter.

    For each cell: which operation is on which edge (0 or 1); how often each operation occurs, and how often on an edge
    that leaves an input; how many edges leave each input; the longest path to a node; and the sums over the nodes of
    the longest, shortest and mean path, where the mean path of a node is one more than the mean of its sources'.

    Args:
        genotype: A genotype for which `why_no_percentile` returns None.
    """
    return {f"{name} {key}": value for name, cell in genotype.cells.items() for key, value in _of_cell(cell).items()}


def _of_cell(cell: Cell) -> dict[str, float]:
    inputs = range(DARTS.inputs)
    edges = set(cell.edges)
    found = {
        f"{a}-{b} {operation}": float((operation, a, b) in edges)
        for a, b in all_edges(DARTS.inputs, NODES)
        for operation in OPERATIONS
    }
    counts = Counter(operation for operation, _, _ in cell.edges)
    leaving = Counter(operation for operation, source, _ in cell.edges if source in inputs)
    found |= {operation: float(counts[operation]) for operation in OPERATIONS}
    found |= {f"{operation} from an input": float(leaving[operation]) for operation in OPERATIONS}
    found |= {f"edges from {i}": float(sum(source == i for _, source, _ in cell.edges)) for i in inputs}
    longest, shortest, mean = ({i: 0.0 for i in inputs} for _ in range(3))
    for node in range(DARTS.inputs, DARTS.inputs + NODES):
        into = [source for _, source, target in cell.edges if target == node]
        longest[node] = 1 + max(longest[source] for source in into)
        shortest[node] = 1 + min(shortest[source] for source in into)
        mean[node] = 1 + sum(mean[source] for source in into) / len(into)
    sums = {"longest": longest, "shortest": shortest, "mean": mean}
    found |= {f"sum of {name} paths": sum(paths.values()) for name, paths in sums.items()}
    return found | {"longest path": max(longest.values())}


def predict(values: Mapping[str, float], model: Mapping[str, Any]) -> dict[str, float]:
    """Returns the accuracy (per cent) that each model predicts, by the name of the model.

    Args:
        values: The features.
        model: `features` (their names, in the order of the models), `ridge` (`intercept` and a coefficient for each
            feature) and `trees` (`intercept` and the trees, whose values are added).
    """
    row = [values[name] for name in model["features"]]
    ridge, trees = (model[name] for name in MODELS)
    return {
        "ridge": ridge["intercept"] + sum(w * v for w, v in zip(ridge["coefficients"], row) if v),
        "trees": trees["intercept"] + sum(leaf(tree, row) for tree in trees["trees"]),
    }


def leaf(tree: Tree, row: Sequence[float]) -> float:
    """Returns the value of the leaf that a row of features reaches.

    Args:
        tree: The tree.
        row: The features by their numbers.
    """
    while not isinstance(tree, float):
        feature, threshold, low, high = tree
        tree = high if row[feature] > threshold else low
    return tree


def percentile_of(value: float, quantiles: Sequence[float]) -> float:
    """Returns the share of a distribution below a value, 0..100, interpolated linearly between its quantiles.

    Args:
        value: The value.
        quantiles: Quantiles at equal distances, the smallest and the largest value at the ends.
    """
    place = bisect_right(quantiles, value)
    if place in (0, len(quantiles)):
        return 100.0 if place else 0.0
    low, high = quantiles[place - 1 : place + 1]
    return 100 * (place - 1 + (value - low) / (high - low)) / (len(quantiles) - 1)


def parameters(values: Mapping[str, float], sizes: Mapping[str, Any]) -> int:
    """Returns the parameters of the network of the published size.

    Args:
        values: The features, on which the count depends linearly.
        sizes: `base` (parameters without any operation) and `added` (by feature).
    """
    return round(sizes["base"] + sum(count * values[name] for name, count in sizes["added"].items()))


def among_size(value: float, size: int, sizes: Mapping[str, Any]) -> float | None:
    """Returns the share of random cells of a size below a value, 0..100, linear between neighbouring sizes.

    Args:
        value: Of a cell: the mean of its percentiles by both models.
        size: Its parameters.
        sizes: `first` and `step` (parameters) and `quantiles`: for every size the quantiles of the values of random
            cells about as large.

    Returns:
        None below the first size and above the last one.
    """
    place = (size - sizes["first"]) / sizes["step"]
    lower = min(floor(place), len(sizes["quantiles"]) - 2)
    if not 0 <= place <= len(sizes["quantiles"]) - 1:
        return None
    low, high = (percentile_of(value, quantiles) for quantiles in sizes["quantiles"][lower : lower + 2])
    return low + (place - lower) * (high - low)
