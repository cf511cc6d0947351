"""From the rows of a comparison to a line for each method."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nas_moreau.compare.rows import Row, label
from nas_moreau.report.significance import permutation_p_value, relative_improvement
from nas_moreau.search.random_cell import RANDOM

PERCENTILES = ("percentile", "percentile_ridge", "percentile_trees", "percentile_of_size")
"""Fields of `Row` that are percentiles, 0..100; the others are accuracies."""
FIGURES = ("table", "retrained_accuracy", "retrained_held_out_accuracy", *PERCENTILES)
"""Fields of `Row` that are summarised."""


@dataclass(frozen=True)
class Summary:
    """One figure of the rows of a method (with or without a derivation rule).

    Attributes:
        figure: The field of `Row` that is summarised.
        method: The search method.
        rule: The derivation rule; None for the space's own.
        n: Number of rows.
        mean: Mean of the figure.
        std: Sample standard deviation (n - 1); None for a single row.
        min: Smallest.
        max: Largest.
        relative_improvement: Per cent over random cells, whose mean is that of the whole table if there is one, else
            that of the rows of the method `random`; None without either, and for percentiles.
        p_value: Permutation test of the difference of means to the baseline's rows; None for the baseline itself.
        collapsed: Number of collapsed cells.
        near_best: Number of cells that another training does not distinguish from the best of the table; None for
            other figures, and for a table that does not show it.
        idle_share: Mean share of idle edges.
        search_seconds: Mean.
        search_peak_memory_bytes: Largest.
        tau_running: Mean of Kendall's tau with BatchNorm's running statistics.
        tau_batch: Mean of Kendall's tau with the statistics of the batch.
    """

    figure: str
    method: str
    rule: str | None
    n: int
    mean: float
    std: float | None
    min: float
    max: float
    relative_improvement: float | None
    p_value: float | None
    collapsed: int
    near_best: int | None
    idle_share: float
    search_seconds: float | None
    search_peak_memory_bytes: int | None
    tau_running: float | None
    tau_batch: float | None

    @property
    def label(self) -> str:
        """The method, with the rule if there is one."""
        return label(self.method, self.rule)

    def to_dict(self) -> dict[str, Any]:
        """Returns the line as plain data, for result.json."""
        return asdict(self)


def summarise(
    rows: Sequence[Row],
    methods: Sequence[str],
    baseline: str,
    baselines: Sequence[Mapping[str, Any]],
    near_best: float | None = None,
) -> list[Summary]:
    """Returns a line for each figure, method and derivation rule that have rows.

    Args:
        rows: The rows.
        methods: Their order; rows of a rule follow those of the space's own.
        baseline: The method that p-values are against.
        baselines: `nas_bench_table.baselines` of the table, or [].
        near_best: Accuracy in the table from which on a cell is not distinguishable from the best one.
    """
    groups: dict[tuple[str, str | None], list[Row]] = {}
    for method in methods:
        for row in sorted((row for row in rows if row.method == method), key=lambda row: row.rule or ""):
            groups.setdefault((method, row.rule), []).append(row)
    found: list[Summary] = []
    for figure in FIGURES:
        known = (baselines[0]["mean"] if baselines else None, near_best) if figure == "table" else (None, None)
        found += _lines(figure, groups, baseline, *known)
    return found


def _lines(
    figure: str,
    groups: Mapping[tuple[str, str | None], Sequence[Row]],
    baseline: str,
    random_mean: float | None,
    near_best: float | None,
) -> Iterable[Summary]:
    """Yields a line for each group with the figure; `random_mean`: the exact mean of random cells, if it is known."""
    known = {key: own for key, rows in groups.items() if (own := [row for row in rows if _of(row, figure) is not None])}
    values = {key: [_of(row, figure) for row in own] for key, own in known.items()}
    against = values.get((baseline, None), [])
    if random_mean is None and (RANDOM, None) in values and figure not in PERCENTILES:
        random_mean = statistics.fmean(values[RANDOM, None])
    for (method, rule), own in known.items():
        found = values[method, rule]
        mean = statistics.fmean(found)
        yield Summary(
            figure,
            method,
            rule,
            n=len(found),
            mean=mean,
            std=statistics.stdev(found) if len(found) > 1 else None,
            min=min(found),
            max=max(found),
            relative_improvement=relative_improvement(mean, random_mean) if random_mean else None,
            p_value=None if (method, rule) == (baseline, None) else permutation_p_value(found, against),
            collapsed=sum(row.verdict == "collapsed" for row in own),
            near_best=None if near_best is None else sum(value >= near_best for value in found),
            idle_share=statistics.fmean(row.idle_share for row in own),
            search_seconds=_mean(row.search_seconds for row in own),
            search_peak_memory_bytes=max(row.search_peak_memory_bytes or 0 for row in own) or None,
            tau_running=_mean(row.tau_running for row in own),
            tau_batch=_mean(row.tau_batch for row in own),
        )


def _of(row: Row, figure: str) -> Any:
    return getattr(row, figure)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
