"""Tags of TensorBoard's curves, and which of them stand together on its CUSTOM SCALARS page."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from nas_moreau.runs.columns import CHARTS, ENVELOPE, SOUND, charts_of, find_column

if TYPE_CHECKING:
    from nas_moreau.architecture.spaces.alpha_table import AlphaTable

Layout = dict[str, dict[str, tuple[str, list[str]]]]


_GROUPS = {
    "accuracies": "accuracy",
    "training_accuracies": "accuracy",
    "task_accuracy": "accuracy",
    "flagged": "accuracy",
    "losses": "loss",
    "training_losses": "loss",
    "upper_level": "loss",
    "lower_level": "loss",
    "learning_rates": "optimizer",
    "lr": "optimizer",
    "drop_path": "optimizer",
    "upper_objective": "theory",
    SOUND: "stability",
    ENVELOPE: "theory",
}
"""Chart, or section of charts -> group of tags. TensorBoard sorts groups by name: accuracy and loss come first."""


def epoch_tag(column: str) -> str:
    """Returns the tag of a column's curve by epochs: `accuracy/held_out_accuracy`, `theory/c_k`, `metrics/mine`."""
    entry = find_column(column)
    return tag(chart_group(entry.chart if entry is not None else ""), column)


def chart_group(key: str) -> str:
    """Returns what a chart is about: "accuracy", "loss", "optimizer", "stability", "theory" or "metrics".

    Args:
        key: Of `CHARTS`, or of another chart.
    """
    section = CHARTS[key].section if key in CHARTS else ""
    return _GROUPS.get(key) or _GROUPS.get(section, "metrics")


def tag(group: str, column: str) -> str:
    """Returns the tag of a column's curve: no parentheses, which the CUSTOM SCALARS page takes for the run's name."""
    return f"{group}/{column.replace('(', '_').replace(')', '')}"


def edge_curves(alphas: AlphaTable) -> dict[str, float]:
    """Returns tag -> softmax weight of every operation on every edge."""
    return {
        _edge_tag(cell, row.edge, operation): weight
        for cell, rows in alphas.cells.items()
        for row in rows
        for operation, weight in row.weights.items()
    }


def board_layout(columns: Iterable[str], alphas: AlphaTable | None = None) -> Layout:
    """Returns which curves stand together on TensorBoard's CUSTOM SCALARS page, as `Monitor.layout` takes it.

    Args:
        columns: Of metrics.csv, shown under their `epoch_tag`.
        alphas: For one chart of each edge's softmax weights; None for no such charts.
    """
    layout: Layout = {}
    for chart, curves in charts_of(columns).values():
        layout.setdefault(chart.section, {})[chart.title] = _lines(epoch_tag(name) for name in curves)
    for cell, rows in alphas.cells.items() if alphas is not None else ():
        layout[f"Softmax weights, {cell}"] = {
            f"{cell} {row.edge[0]}-{row.edge[1]}": _lines(_edge_tag(cell, row.edge, name) for name in row.weights)
            for row in rows
        }
    return layout


def _lines(tags: Iterable[str]) -> tuple[str, list[str]]:
    # the page takes tags as regular expressions and matches them at the beginning
    return "Multiline", [re.escape(name) + "$" for name in tags]


def _edge_tag(cell: str, edge: tuple[int, int], operation: str) -> str:
    return tag(f"weights_{cell}", f"{edge[0]}-{edge[1]}/{operation}")
