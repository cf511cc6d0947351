"""Which curves TensorBoard shows of a run, and which of them stand together on its CUSTOM SCALARS page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

Charts = dict[str, dict[str, tuple[str, list[str]]]]

# Category -> title -> columns of metrics.csv; "*" stands for every cell.
_SEARCH = {
    "Search": {
        "losses": ["lower_loss", "upper_loss", "f_theta", "held_out_loss", "one_hot_loss"],
        "upper objective F, its regularising term included": ["upper_objective"],
        "accuracies": ["lower_accuracy", "upper_accuracy", "held_out_accuracy", "one_hot_accuracy"],
    },
    "Is the cell sound?": {
        "discretisation gap: held-out accuracy, mixed minus one-hot": ["discretisation_gap"],
        "entropy of the alphas": ["alpha_entropy_*"],
        "margin of the strongest operation": ["margin_*"],
        "share of edges led by an idle operation": ["idle_lead_*"],
        "share of idle edges in the derived cell": ["idle_share_*"],
        "dominant eigenvalue of the Hessian in the alphas": ["hessian_eigenvalue"],
    },
    "Moreau envelope": {
        "terms of the alphas' direction d_x": ["F_x/c", "phi_x(y)", "phi_x(theta)", "difference", "d_x"],
        "cosine of grad_x F and the correction": ["cosine"],
        "f(y) - f(theta)": ["gap"],
        "|y - theta|": ["distance"],
        "penalty c_k": ["c_k"],
        "residual": ["residual"],
    },
}
_RETRAINING = {
    "Retraining": {
        "losses": ["train_loss", "validation_loss", "test_loss"],
        "accuracies": ["train_accuracy", "validation_accuracy", "test_accuracy"],
        "learning rate": ["lr"],
        "drop-path probability": ["drop_path"],
    }
}


def tag(group: str, column: str) -> str:
    """Returns the tag of a column's curve: no parentheses, which the CUSTOM SCALARS page takes for the run's name."""
    return f"{group}/{column.replace('(', '_').replace(')', '')}"


def edge_curves(
    tables: Mapping[str, Sequence[Sequence[float]]], edges: Sequence[tuple[int, int]], operations: Sequence[str]
) -> dict[str, float]:
    """Returns tag -> softmax weight of every operation on every edge.

    Args:
        tables: Cell name -> (edges, operations) weights.
        edges: (from, to) of the rows.
        operations: Names of the columns.
    """
    return {
        _edge_tag(cell, edge, operation): weight
        for cell, table in tables.items()
        for edge, row in zip(edges, table)
        for operation, weight in zip(operations, row)
    }


def search_charts(
    columns: Iterable[str], cells: Sequence[str], edges: Sequence[tuple[int, int]], operations: Sequence[str]
) -> Charts:
    """Returns the charts of a search, as `Monitor.layout` takes them; charts without a curve are left out.

    Args:
        columns: Of metrics.csv, shown under their `tag` in the group "epoch".
        cells, edges, operations: Of the space, for the charts of the edges; no cells: no such charts.
    """
    edge_charts = {
        f"Softmax weights, {cell}": {
            f"{cell} {edge[0]}-{edge[1]}": _lines(_edge_tag(cell, edge, name) for name in operations) for edge in edges
        }
        for cell in cells
    }
    return _charts(_SEARCH, columns) | edge_charts


def retraining_charts(columns: Iterable[str]) -> Charts:
    """Returns the charts of a retraining, likewise."""
    return _charts(_RETRAINING, columns)


def _charts(wanted: Mapping[str, Mapping[str, Sequence[str]]], columns: Iterable[str]) -> Charts:
    there = list(columns)
    charts: Charts = {}
    for category, titles in wanted.items():
        for title, names in titles.items():
            known = [column for name in names for column in there if _matches(name, column)]
            if known:
                charts.setdefault(category, {})[title] = _lines(tag("epoch", column) for column in known)
    return charts


def _matches(name: str, column: str) -> bool:
    return column.startswith(name[:-1]) if name.endswith("*") else column == name


def _lines(tags: Iterable[str]) -> tuple[str, list[str]]:
    # the page takes tags as regular expressions and matches them at the beginning
    return "Multiline", [re.escape(name) + "$" for name in tags]


def _edge_tag(cell: str, edge: tuple[int, int], operation: str) -> str:
    return tag(f"weights_{cell}", f"{edge[0]}-{edge[1]}/{operation}")
