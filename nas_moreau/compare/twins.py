"""Cells of a NAS-Bench-201 table that are one network trained twice: how much of an accuracy is chance.

The table holds 15,625 cells and far fewer functions: where a skip connection stands for a sum, several cells are the
same network. Their accuracies differ by what another training gives, which no search can foresee.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nas_moreau.compare.nas_bench_table import BenchmarkTable, operations_of
from nas_moreau.compare.ranking import OPERATIONS
from nas_moreau.report.significance import kendall_tau

Term = tuple[Any, ...]


def twins(names: Iterable[str]) -> list[list[str]]:
    """Returns the groups of at least two cells that compute the same function.

    Two of them are one network, trained twice, in the benchmark: with `none` left out and every skip connection
    resolved into what it copies, their sums have the same terms. The 15,625 cells are 5,545 functions.

    Args:
        names: NAS-Bench-201 strings.
    """
    groups: dict[Term, list[str]] = {}
    for name in names:
        groups.setdefault(_function(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _function(arch: str) -> Term:
    """Returns the sum that the last node of a cell is: its terms sorted, each (operation, the sum it acts on)."""
    nodes: list[Term] = [(("input", ()),)]
    for node in arch.split("+"):
        terms: list[Any] = []
        for edge in node.strip("|").split("|"):
            operation, _, source = edge.partition("~")
            if operation == "skip_connect":
                terms += nodes[int(source)]
            elif operation != "none" and (nodes[int(source)] or operation != "avg_pool_3x3"):  # the pool of nothing
                terms.append((operation, nodes[int(source)]))
        nodes.append(tuple(sorted(terms)))
    return nodes[-1]


@dataclass(frozen=True)
class Retraining:
    """What a second training of the same network would change, estimated from a table's `twins`.

    Attributes:
        noise: Root mean square of the difference of two trainings (fraction), among the best tenth of the cells.
        near_best: Accuracy from which on a cell is not distinguishable from the best one: the best less the noise.
        tau: Kendall's tau between first and second training of the cells of `ranking.ranked_cells` that have a twin: no
            ranking of them can be expected to be better; None without such cells.
        pairs: Number of those cells.
    """

    noise: float
    near_best: float
    tau: float | None
    pairs: int


def retraining(table: BenchmarkTable, column: str) -> Retraining | None:
    """Returns how much the accuracies of a column depend on the training; None without twins among the best cells."""
    accuracies = table.accuracies(column)
    ordered = sorted(accuracies.values())
    limit = ordered[-max(1, len(ordered) // 10)]
    groups = twins(accuracies)
    top = [values for group in groups if statistics.fmean(values := [accuracies[name] for name in group]) >= limit]
    if not top:
        return None
    within = math.fsum((len(values) - 1) * statistics.variance(values) for values in top)
    noise = math.sqrt(2 * within / sum(len(values) - 1 for values in top))
    trained = [
        (accuracies[name], accuracies[group[(place + 1) % len(group)]])
        for group in groups
        for place, name in enumerate(group)
        if operations_of(name) <= set(OPERATIONS)
    ]
    tau = kendall_tau(*zip(*trained)) if trained else None
    return Retraining(noise, ordered[-1] - noise, tau, len(trained))
