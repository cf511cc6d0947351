"""From the rows of a comparison to a line for each method."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from nas_moreau.compare.significance import permutation_p_value, relative_improvement

# what may be summarised, the first that is there first
FIGURES = ("table", "retrained_accuracy", "retrained_held_out_accuracy")
MEANS = ("search_seconds", "idle_share", "tau_running", "tau_batch")


def summarise(
    rows: Sequence[Mapping[str, Any]], methods: Sequence[str], baseline: str, known: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Returns for each figure and method `figure method n mean std min max relative_improvement p_value` and costs.

    `std` is the sample's (n - 1), None for a single row. `relative_improvement`: per cent over random cells, whose mean
    is that of the whole table where there is one, else that of the rows of the method `random`; None without either.
    `p_value`: permutation test of the difference of means to the baseline's rows. The number of `collapsed` cells.
    `search_seconds`, `idle_share` and the rank correlations are means, `search_peak_memory_bytes` is the largest.

    Args:
        rows: Accuracies as fractions.
        methods: Their order; a method's rows after a selection follow those before.
        baseline: The method that p-values are against.
        known: `nas_bench_table.baselines` of the table, or [].
    """
    labels = list(dict.fromkeys(
        row["method"]
        for method in methods
        for row in rows
        if row["method"] == method or row["method"].startswith(f"{method} +")
    ))  # fmt: skip
    found = []
    for figure in FIGURES:
        by_label = {
            label: [row for row in rows if row["method"] == label and row.get(figure) is not None] for label in labels
        }
        values = {label: [row[figure] for row in own] for label, own in by_label.items() if own}
        random_mean = statistics.fmean(values["random"]) if "random" in values else None
        if figure == "table" and known:
            random_mean = known[0]["mean"]
        for label, accuracies in values.items():
            mean = statistics.fmean(accuracies)
            peaks = [row["search_peak_memory_bytes"] for row in by_label[label] if row["search_peak_memory_bytes"]]
            found.append({
                "figure": figure, "method": label, "n": len(accuracies), "mean": mean,
                "std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                "min": min(accuracies), "max": max(accuracies),
                "relative_improvement": relative_improvement(mean, random_mean) if random_mean else None,
                "p_value": None if label == baseline else permutation_p_value(accuracies, values.get(baseline, [])),
                "search_peak_memory_bytes": max(peaks, default=None),
                "collapsed": sum(row["verdict"] == "collapsed" for row in by_label[label]),
                **{name: _mean([row.get(name) for row in by_label[label]]) for name in MEANS},
            })  # fmt: skip
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
