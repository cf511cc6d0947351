"""Every number of an epoch: its column in metrics.csv, its curve in TensorBoard and the report, its chart.

`CHARTS` and `COLUMNS` are the one list from which the order of the CSV columns, TensorBoard's page, the charts of a
report and the figures of a comparison of runs are made. A metric of the user joins both by `register_metric`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nas_moreau.errors import InputError

if TYPE_CHECKING:
    from nas_moreau.architecture.spaces.alpha_table import AlphaTable
    from nas_moreau.architecture.spaces.genotype import Genotype
    from nas_moreau.architecture.spaces.space import SearchSpace

ANY_CELL = "*"
"""At the end of a column's name: one column for each cell, `margin_*` for `margin_normal` and `margin_reduce`."""


@dataclass(frozen=True)
class Chart:
    """Columns that share their axes.

    Attributes:
        title: Above the chart.
        section: The group of charts that it belongs to; one page of TensorBoard's CUSTOM SCALARS.
        unit: The quantity and its unit, shown at the axis.
        percent: Whether the values are fractions that the report shows as per cent.
        log: Whether the axis is logarithmic in the report.
        note: Below the chart: how to read it.
        may_be_zero: Whether the chart is left out while all its values are zero.
    """

    title: str
    section: str
    unit: str = ""
    percent: bool = False
    log: bool = False
    note: str = ""
    may_be_zero: bool = False


@dataclass(frozen=True)
class Column:
    """A number of an epoch.

    Attributes:
        title: Names its curve within a chart; for a column of each cell the cell's name does.
        chart: Key of `CHARTS`; "" for a column that no chart shows.
        final: Title of the last epoch's value as a figure of a finished run; "" for one that is not compared.
    """

    title: str
    chart: str
    final: str = ""


SEARCH, SOUND, ENVELOPE, RETRAINING = "Search", "Is the cell sound?", "Moreau envelope", "Retraining"
TASK = "Bilevel problem"
_OTHER = "Other metrics"

CHARTS: dict[str, Chart] = {
    "losses": Chart("Losses", SEARCH, "cross-entropy (nats)", note="Means over an epoch."),
    "upper_objective": Chart(
        "Upper objective F",
        SEARCH,
        "nats",
        note="Cross-entropy on the architecture split, with its regularising terms (+beta, penalty).",
    ),
    "accuracies": Chart(
        "Accuracies", SEARCH, "accuracy (%)", percent=True, note="Only the held-out images are seen by neither level."
    ),
    "metric": Chart("Metric", SEARCH, note="The user's metric, on held-out samples."),
    "discretisation_gap": Chart(
        "Discretisation gap",
        SOUND,
        "accuracy (%)",
        percent=True,
        note="Held-out accuracy of the mixture minus that of the derived cell in the supernet.",
    ),
    "alpha_entropy": Chart(
        "Entropy of the alphas", SOUND, "mean entropy (nats)", note="High: undecided. It should fall slowly."
    ),
    "margin": Chart(
        "Margin of the strongest operation",
        SOUND,
        "softmax weight",
        note="Its weight minus that of the next one, mean over the edges.",
    ),
    "idle_lead": Chart(
        "Edges led by an idle operation",
        SOUND,
        "edges (%)",
        percent=True,
        note="Of all edges of the space: skip_connect, none or noise is the strongest choice.",
    ),
    "idle_share": Chart(
        "Idle edges of the derived cell",
        SOUND,
        "edges (%)",
        percent=True,
        note="A normal cell with more than half of its edges idle has collapsed.",
    ),
    "hessian_eigenvalue": Chart(
        "Dominant eigenvalue of the Hessian in the alphas", SOUND, note="A steep rise often comes before a collapse."
    ),
    "expected_macs": Chart(
        "Expected multiply-adds", SOUND, note="Relative to the most expensive cells, weighed by the softmax."
    ),
    "expected_costs": Chart(
        "Expected parameters and latency", SOUND, note="Relative to the most expensive ones, weighed by the softmax."
    ),
    "gap": Chart("Gap f(y) − f(θ)", ENVELOPE, "nats", note="Should be small and not negative."),
    "distance": Chart(
        "Distance ‖y − θ‖ and penalty c_k",
        ENVELOPE,
        log=True,
        note="θ is tied to y by the proximal term; c_k weighs the lower level.",
    ),
    "terms": Chart(
        "Terms of the architecture gradient",
        ENVELOPE,
        "norm",
        log=True,
        note="The correction is the difference of two nearly equal gradients.",
    ),
    "directions": Chart("Directions of y and θ", ENVELOPE, "norm", log=True),
    "cosine": Chart(
        "Cosine of ∇ₓF and the correction",
        ENVELOPE,
        note="Negative: the correction opposes the first-order direction.",
    ),
    "residual": Chart(
        "Residual",
        ENVELOPE,
        log=True,
        note="Residual of the reformulated problem, (15) of the paper, with θ instead of the minimiser.",
    ),
    "learning_rates": Chart("Learning rates", SEARCH, log=True),
    "training_losses": Chart(
        "Losses", RETRAINING, "cross-entropy (nats)", note="Training with augmentation, test without."
    ),
    "training_accuracies": Chart(
        "Accuracies", RETRAINING, "accuracy (%)", percent=True, note="Nothing is chosen by the test curve."
    ),
    "lr": Chart("Learning rate", RETRAINING),
    "drop_path": Chart("Drop-path probability", RETRAINING, may_be_zero=True),
    "task_accuracy": Chart("Accuracy", TASK, "accuracy (%)", percent=True, note="On images that neither level sees."),
    "flagged": Chart(
        "Labels flagged as wrong",
        TASK,
        "%",
        percent=True,
        note="Precision and recall are those of finding the labels that were changed for a demonstration.",
    ),
    "upper_level": Chart("Upper objective F", TASK),
    "lower_level": Chart("Lower objective f", TASK),
}

COLUMNS: dict[str, Column] = {
    "epoch": Column("epoch", ""),
    "step": Column("step", ""),
    # a search: means over the epoch's steps, then evaluations on the held-out images
    "lower_loss": Column("weight split, f(y)", "losses"),
    "upper_loss": Column("architecture split", "losses"),
    "f_theta": Column("f(θ)", "losses"),
    "held_out_loss": Column("held out", "losses"),
    "one_hot_loss": Column("derived cell, held out", "losses"),
    "upper_objective": Column("F(y)", "upper_objective"),
    "lower_accuracy": Column("weight split", "accuracies"),
    "upper_accuracy": Column("architecture split", "accuracies"),
    "held_out_accuracy": Column("held out", "accuracies", "Held-out accuracy of the supernet"),
    "one_hot_accuracy": Column(
        "derived cell, held out", "accuracies", "Held-out accuracy of the derived cell in the supernet"
    ),
    "held_out_metric": Column("all options", "metric", "Held-out metric of the mixture"),
    "one_hot_metric": Column("chosen options", "metric", "Held-out metric of the chosen options"),
    "discretisation_gap": Column("mixture minus derived cell", "discretisation_gap"),
    "alpha_entropy_*": Column("", "alpha_entropy"),
    "margin_*": Column("", "margin"),
    "idle_lead_*": Column("", "idle_lead"),
    "idle_share_*": Column("", "idle_share"),
    "hessian_eigenvalue": Column("eigenvalue", "hessian_eigenvalue"),
    "expected_macs": Column("expected multiply-adds", "expected_macs"),
    "expected_parameters": Column("parameters", "expected_costs"),
    "expected_ms": Column("latency", "expected_costs"),
    "gap": Column("gap", "gap"),
    "distance": Column("‖y − θ‖", "distance"),
    "c_k": Column("c_k", "distance"),
    "gamma": Column("γ", "distance"),
    "F_x": Column("∇ₓF", "terms"),
    "F_x_over_c": Column("∇ₓF / c", "terms"),
    "phi_x_y": Column("∇ₓφ(y)", "terms"),
    "phi_x_theta": Column("∇ₓφ(θ)", "terms"),
    "difference": Column("difference", "terms"),
    "correction": Column("correction", "terms"),
    "d_x": Column("d_x", "terms"),
    "F_y_over_c": Column("∇F / c at y", "directions"),
    "d_y": Column("d_y", "directions"),
    "d_theta": Column("d_θ", "directions"),
    "cosine": Column("cosine", "cosine"),
    "residual": Column("c_k ‖(d_x, d_y)‖", "residual"),
    "weights_lr": Column("weights", "learning_rates"),
    "alphas_lr": Column("alphas", "learning_rates"),
    # a retraining
    "train_loss": Column("training", "training_losses"),
    "validation_loss": Column("validation", "training_losses"),
    "test_loss": Column("test", "training_losses"),
    "train_accuracy": Column("training", "training_accuracies"),
    "validation_accuracy": Column("validation", "training_accuracies"),
    "test_accuracy": Column("test", "training_accuracies", "Test accuracy after retraining"),
    "lr": Column("learning rate", "lr"),
    "drop_path": Column("drop-path", "drop_path"),
    # a task of `solve`
    "F": Column("F(x, y)", "upper_level"),
    "f": Column("f(x, y)", "lower_level"),
    "accuracy": Column("accuracy", "task_accuracy"),
    "flagged": Column("flagged", "flagged"),
    "precision": Column("precision", "flagged"),
    "recall": Column("recall", "flagged"),
    "f1": Column("F1", "flagged"),
    "wall_seconds": Column("wall-clock seconds", ""),
}
FIGURES = ("test_accuracy", "held_out_accuracy", "one_hot_accuracy")
"""What runs are compared by, the most telling first; the user's metrics follow."""


# --- metrics of the user ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EpochEnd:
    """The end of a search epoch, as a metric gets it.

    Attributes:
        epoch: Its number, from 0.
        step: Steps done.
        space: The search space.
        alphas: The softmax weights of all edges.
        genotype: The genotype derived from them.
        row: The other numbers of the epoch, by column.
    """

    epoch: int
    step: int
    space: SearchSpace
    alphas: AlphaTable
    genotype: Genotype
    row: Mapping[str, Any]


Metric = Callable[[EpochEnd], float]
METRICS: dict[str, Metric] = {}
"""Column -> the user's function that computes it."""


def register_metric(
    name: str, *, title: str, unit: str = "", group: str = "", percent: bool = False, log: bool = False, note: str = ""
) -> Callable[[Metric], Metric]:
    """Makes a number of every search epoch: a column of metrics.csv, a curve in TensorBoard and in the report.

    The decorated function takes an `EpochEnd` and returns a float. It must depend on nothing else, so that a resumed
    search gives the same numbers; with several processes the first one computes it.

    Args:
        name: The column: letters, digits and underscores; not taken yet.
        title: Names the curve.
        unit: The quantity and its unit, shown at the axis.
        group: Key of `CHARTS`: the chart that the curve joins. A new key makes a chart of that title, which other
            metrics can join; "" makes one of this metric's title.
        percent: Whether the values are fractions to be shown as per cent.
        log: Whether the axis is logarithmic in the report.
        note: How to read the chart. Like `unit`, `percent` and `log` it is that of the chart's first metric.

    Raises:
        InputError: The name is taken, or no identifier.

    Example:
        >>> @register_metric("normal_skips", title="skips of the normal cell", unit="edges")  # doctest: +SKIP
        ... def normal_skips(end: EpochEnd) -> float:
        ...     return sum(operation == "skip_connect" for operation, _, _ in end.genotype.cells["normal"].edges)
    """
    if not name.isidentifier() or find_column(name) is not None:
        raise InputError(f"A metric cannot be named '{name}'.", "Use a free name of letters, digits and underscores.")
    key = group or name
    chart = Chart(group or title, _OTHER, unit, percent, log, note)

    def register(metric: Metric) -> Metric:
        CHARTS.setdefault(key, chart)
        COLUMNS[name] = Column(title, key, final=title)
        METRICS[name] = metric
        return metric

    return register


def epoch_metrics(end: EpochEnd) -> dict[str, float]:
    """Returns the user's metrics at the end of an epoch, by column."""
    return {name: float(metric(end)) for name, metric in METRICS.items()}


# --- what is made of the table ----------------------------------------------------------------------------------------


def find_column(name: str) -> Column | None:
    """Returns the entry of a column of metrics.csv, with the cell's name as its title where there is one for each."""
    key = _key(name)
    if key is None:
        return None
    column = COLUMNS[key]
    return column if key == name else replace(column, title=name.removeprefix(key.removesuffix(ANY_CELL)))


def _key(name: str) -> str | None:
    """Returns the key of `COLUMNS` that a column belongs to."""
    families = (key for key in COLUMNS if key.endswith(ANY_CELL) and name.startswith(key.removesuffix(ANY_CELL)))
    return name if name in COLUMNS else next(families, None)


def in_order(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the row of metrics.csv in the order of the table: "epoch" first, "wall_seconds" last.

    Columns that the table does not hold (of a method of the user) stand before "wall_seconds".
    """
    order = [*(key for key in COLUMNS if key != "wall_seconds"), None, "wall_seconds"]
    return {name: row[name] for name in sorted(row, key=lambda name: order.index(_key(name)))}


def charts_of(columns: Iterable[str]) -> dict[str, tuple[Chart, dict[str, str]]]:
    """Returns key -> (chart, column -> title of its curve) for all charts that show some of the columns.

    A column that the table does not hold gets a chart named after it.
    """
    there = list(in_order(dict.fromkeys(columns)))
    found: dict[str, tuple[Chart, dict[str, str]]] = {
        key: (chart, {n: c.title for n in there if (c := find_column(n)) is not None and c.chart == key})
        for key, chart in CHARTS.items()
    }
    found |= {name: (Chart(name, _OTHER), {name: name}) for name in there if find_column(name) is None}
    return {key: (chart, curves) for key, (chart, curves) in found.items() if curves}


def final_figures() -> dict[str, str]:
    """Returns column -> title of what finished runs are compared by, the most telling first."""
    return {name: COLUMNS[name].final for name in (*FIGURES, *METRICS)}
