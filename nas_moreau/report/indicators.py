"""The sentences of the report: what came out, whether the search looks healthy, what the numbers mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nas_moreau.architecture.spaces.alpha_table import AlphaTable
from nas_moreau.report.choices import Choice, choices
from nas_moreau.runs.history import Run, Stage
from nas_moreau.search.collapse import Health, assess

PARAMETER_FREE = ("none", "noise", "skip_connect", "max_pool_3x3", "avg_pool_3x3")
GOOD, WATCH, BAD = "good", "watch", "bad"
LEVELS = {"healthy": GOOD, "undecided": WATCH, "collapsed": BAD}
"""Verdict -> level of the page."""


@dataclass
class Indicator:
    """One sign of health: what it is, its value, how it looks, and what it means."""

    name: str
    value: str
    level: str
    meaning: str


def verdict(run: Run) -> str:
    """Returns the outcome in a sentence or two."""
    said = []
    accuracy = run.test_accuracy
    parameters = run.retrain.number("parameters") if run.retrain is not None else None
    size = f", with {millions(parameters)} parameters" if parameters is not None else ""
    if accuracy is not None:
        what = "The cell that was found reaches" if run.search is not None else "The network reaches"
        said.append(f"{what} {percent(accuracy)} test accuracy after retraining{size}.")
    elif run.retrain is not None:
        said.append(f"Retraining {_where(run.retrain)}; there is no final test accuracy yet.")
    if run.search is not None:
        held_out = run.search.number("held_out_accuracy")
        if run.search.result.get("method") == "random":
            said.append("The cell was drawn at random, as a yardstick for cells that were searched for.")
        elif accuracy is None and run.search.finished:
            reached = f", whose supernet reaches {percent(held_out)} on held-out images" if held_out is not None else ""
            said.append(f"The search is finished and derived a cell{reached}.")
            if run.retrain is None:
                said.append("How good the cell is by itself is known only after retraining.")
        elif not run.search.finished:
            said.append(f"The search {_where(run.search)}.")
        said.append(_health(run.search))
    return " ".join(part for part in said if part)


def _where(stage: Stage) -> str:
    state = {"interrupted": "was interrupted", "failed": "failed"}.get(stage.state, "is not finished")
    done = len(stage.metrics.get("epoch", []))
    planned = (stage.config.get(stage.name) or {}).get("epochs")
    return f"{state} after {done} of {planned} epochs" if isinstance(planned, int) else f"{state} after {done} epochs"


def health(search: Stage) -> Health | None:
    """Returns the health of a search: the recorded one, or that of the last epoch's cell; None before the first."""
    if "health" in search.result:
        return Health.from_dict(search.result["health"])
    return None if search.genotype is None else assess(search.genotype, search.final_alphas)


def _health(search: Stage) -> str:
    """Returns the verdict on the cell, and the indicators to look at."""
    found = health(search)
    if found is None:
        return ""
    look_at = [sign.name.lower() for sign in indicators(search) if sign.level != GOOD]
    return f"The cell is {found}." + (f" Look at {_and(look_at)} below." if look_at else "")


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def indicators(search: Stage) -> list[Indicator]:
    """Returns the signs of health that the search's files allow to judge."""
    found: list[Indicator] = []
    if (state := health(search)) is not None:
        found += _of_cells(state)
    if search.genotype is not None:
        found += _without_parameters(search.genotype)
    if search.final_alphas is not None:
        found.append(_margins(choices(search)))
        found.append(_entropy(search.final_alphas))
    lost = search.last("discretisation_gap")
    if lost is not None:
        found.append(_discretisation(lost, search.last("held_out_accuracy")))
    if isinstance(stood := search.result.get("stability"), dict):
        found.append(_stability(stood))
    gap = search.last("gap")
    if gap is not None:
        found.append(_gap(gap, search.last("lower_loss")))
    held_out, upper = search.last("held_out_accuracy"), search.last("upper_accuracy")
    if held_out is not None and upper is not None:
        found.append(_overfit(held_out, upper))
    return found


def _of_cells(state: Health) -> list[Indicator]:
    found = [
        Indicator(
            f"Idle edges of the {name} cell".replace("cell cell", "cell"),
            f"{cell.count} of {cell.edges}" + "".join(f", {n} {operation}" for operation, n in cell.idle.items()),
            BAD if cell.collapsed else GOOD,
            "The best-known failure of differentiable search is a cell of skip connections: they learn nothing, but "
            "help every other weight early on, so their share grows. A cell has collapsed when more than half of its "
            "edges carry skip_connect, none or noise. Well-known cells have 0 to 3 of 8.",
        )
        for name, cell in state.cells.items()
        if cell.judged
    ]
    if state.undecided and state.largest_weight is not None:
        found.append(
            Indicator(
                "Largest softmax weight",
                percent(state.largest_weight, 1),
                WATCH,
                "No operation of any edge weighs clearly more than the others do on average: the search has decided "
                "nothing yet.",
            )
        )
    return found


def _without_parameters(genotype: Any) -> list[Indicator]:
    return [
        Indicator(
            f"Operations that learn in the {name} cell".replace("cell cell", "cell"),
            f"0 of {len(cell.edges)}",
            WATCH,
            "No operation of this cell has weights: a stack of it can learn hardly anything.",
        )
        for name, cell in genotype.cells.items()
        if name != "reduce" and all(operation in PARAMETER_FREE for operation, _, _ in cell.edges)
    ]


def _margins(edges: list[Choice]) -> Indicator:
    kept = [choice for choice in edges if choice.chosen] or edges
    ordered = sorted(choice.margin for choice in kept)
    middle = ordered[len(ordered) // 2]
    return Indicator(
        "Margin of the choices",
        f"median {percent(middle, 1)}, smallest {percent(ordered[0], 1)}",
        GOOD if middle >= 0.02 else WATCH,
        "By how much the strongest operation of an edge leads over the runner-up, in softmax weight. Near zero the "
        "choice is little better than a coin's: another seed may well choose otherwise.",
    )


def _entropy(table: AlphaTable) -> Indicator:
    shares = []
    for rows in table.cells.values():
        for row in rows:
            if len(row.weights) > 1:
                entropy = -sum(w * math.log(w) for w in row.weights.values() if w > 0)
                shares.append(entropy / math.log(len(row.weights)))
    mean = sum(shares) / max(1, len(shares))
    return Indicator(
        "Entropy of the alphas",
        f"{percent(mean, 0)} of the largest possible",
        WATCH if mean > 0.98 or mean < 0.02 else GOOD,
        "100 % means that all operations still weigh the same (nothing was decided), 0 % that every edge has one "
        "operation left (nothing can change any more). A search should come down from 100 %, not fall at once.",
    )


def _discretisation(lost: float, mixed: float | None) -> Indicator:
    return Indicator(
        "Discretisation gap",
        f"{100 * lost:.1f} points" + (f" of {percent(mixed, 1)}" if mixed is not None else ""),
        GOOD if lost < 0.1 else WATCH,
        "What the supernet's accuracy on held-out images loses when the mixture is replaced by the derived cell alone. "
        "A wide gap means that the cell owes its choice to company that it will not have; after retraining it may be "
        "good all the same.",
    )


def _stability(stood: dict[str, Any]) -> Indicator:
    unchanged, epochs = stood["epochs_unchanged"], stood["epochs"]
    return Indicator(
        "Stability of the cell",
        f"unchanged for the last {unchanged} of {epochs} epochs",
        GOOD if unchanged >= max(min(3, epochs), 0.1 * epochs) else WATCH,
        f"Of its edges {percent(stood['edges_unchanged'], 0)} stood in all of the last {stood['window']} epochs. A "
        "cell that still changes at the end would have been another one a little earlier or later.",
    )


def _gap(gap: float, loss: float | None) -> Indicator:
    scale = abs(loss) if loss else 1.0
    return Indicator(
        "Gap f(y) − f(θ)",
        f"{gap:.4g}",
        WATCH if gap < -1e-3 * scale else GOOD,
        "θ tracks the lower level's optimum near y, so its loss should be no larger than that of y: the gap should be "
        "small and not negative. Where it is negative θ lags behind, and the correction that it gives to the alphas' "
        "gradient may point the wrong way.",
    )


def _overfit(held_out: float, upper: float) -> Indicator:
    return Indicator(
        "Held-out accuracy against the architecture split",
        f"{percent(held_out)} against {percent(upper)}",
        WATCH if upper - held_out > 0.2 else GOOD,
        "Weights and alphas both see the architecture split, so its accuracy flatters. The held-out images are seen by "
        "neither level. A wide difference means that the supernet learnt its images by heart.",
    )


def percent(value: float, digits: int = 2) -> str:
    """Returns a fraction as per cent."""
    return f"{100 * value:.{digits}f} %"


def millions(value: float) -> str:
    """Returns a count with the unit that suits it."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Returns a time in the units a person would use."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def memory(count: float) -> str:
    """Returns bytes in MiB or GiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def ranges(numbers: Sequence[int]) -> str:
    """Returns 0-3, 7 for 0, 1, 2, 3, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def cent(value: float | None) -> str:
    """Returns a fraction in per cent with two digits, or a dash."""
    return "–" if value is None else f"{100 * value:.2f}"


def spread(mean: float, std: float | None) -> str:
    """Returns mean ± std of fractions in per cent."""
    return cent(mean) if std is None else f"{cent(mean)} ± {cent(std)}"
