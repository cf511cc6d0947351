"""Indicators of a search's health: what its files allow to judge, and what each number means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas_moreau.architecture.spaces.alpha_table import AlphaTable
from nas_moreau.architecture.spaces.genotype import Genotype
from nas_moreau.config import SearchConfig, make_section
from nas_moreau.drawing.operation_style import cell_title
from nas_moreau.report.choices import Choice, choices
from nas_moreau.report.format import percent
from nas_moreau.runs.history import Stage
from nas_moreau.search.collapse import Health, assess
from nas_moreau.search.few_images import few_images

GOOD, WATCH, BAD = "good", "watch", "bad"
LEVELS = {"healthy": GOOD, "undecided": WATCH, "collapsed": BAD}
"""Verdict -> level on the page."""
PARAMETER_FREE = ("none", "noise", "skip_connect", "max_pool_3x3", "avg_pool_3x3")

# Limits of the level `watch`: our choice, to draw the eye; only the verdict (search/collapse.py) decides anything.
SMALL_MARGIN = 0.02
"""Median margin (softmax weight) below which another seed may well choose otherwise."""
EXTREME_ENTROPY = 0.02
"""Distance of the relative entropy from 0 or 1 at which nothing is decided, or nothing can change any more."""
WIDE_DISCRETISATION = 0.1
"""Accuracy lost by the derived cell in the supernet."""
STABLE_SHARE, STABLE_EPOCHS = 0.1, 3
"""A cell is stable that did not change in this share of the epochs, or in this many."""
NEGATIVE_GAP = 1e-3
"""Negative gap f(y) - f(theta), relative to f(y), that is more than rounding and noise."""
WIDE_OVERFIT = 0.2
"""Accuracy on the architecture split minus that on the held-out split."""
TRAIN = "let short training choose among the strongest cells (nas-moreau derive RUN --rule trained --write)"
"""The advice where the alphas have not decided."""


@dataclass(frozen=True)
class Indicator:
    """An indicator of a search's health.

    Attributes:
        name: What it is about.
        value: Its value, as text.
        level: `GOOD`, `WATCH` or `BAD`.
        meaning: What it means.
        advice: What to do where the level is not `GOOD`.
    """

    name: str
    value: str
    level: str
    meaning: str
    advice: str

    def __str__(self) -> str:
        """Returns what it means, and what to do where it is not good."""
        return self.meaning if self.level == GOOD else f"{self.meaning} What to do: {self.advice}"


def health(search: Stage) -> Health | None:
    """Returns the health of a search: the recorded one, or that of the last epoch's cell; None before the first."""
    if "health" in search.result:
        return Health.from_dict(search.result["health"])
    return None if search.genotype is None else assess(search.genotype, search.final_alphas)


def indicators(search: Stage) -> list[Indicator]:
    """Returns the indicators that the search's files allow to judge."""
    found: list[Indicator] = []
    if (state := health(search)) is not None:
        found += _cells(state)
    if search.genotype is not None:
        found += _without_parameters(search.genotype)
    trained = state is not None and state.trained
    if trained:
        found.append(_short_training(search.result["derived_by"]["rounds"]))
    elif search.final_alphas is not None:  # what the weights say of a choice that they made
        found += [_margins(choices(search)), _entropy(search.final_alphas)]
    if (few := _few(search)) is not None:
        found.append(few)
    held_out, upper = search.last("held_out_accuracy"), search.last("upper_accuracy")
    if (lost := search.last("discretisation_gap")) is not None:
        found.append(_discretisation(lost, held_out))
    if (record := search.result.get("stability")) is not None and not trained:
        found.append(_stability(record))
    if (gap := search.last("gap")) is not None:
        found.append(_gap(gap, search.last("lower_loss")))
    if held_out is not None and upper is not None:
        found.append(_overfit(held_out, upper))
    return found


def _cells(state: Health) -> list[Indicator]:
    found = [
        Indicator(
            f"Idle edges of the {cell_title(name)}",
            f"{cell.count} of {cell.edges}" + "".join(f", {n} {operation}" for operation, n in cell.idle.items()),
            BAD if cell.collapsed else GOOD,
            "The best-known failure of differentiable search is a cell of skip connections: they learn nothing, but "
            "help every other weight early on, so their share grows. A cell has collapsed when more than half of its "
            "edges carry skip_connect, none or noise. Well-known cells have 0 to 3 of 8.",
            "search again with search.guard=best, which derives the cell from the epoch where it was best.",
        )
        for name, cell in state.cells.items()
        if cell.judged
    ]
    if state.undecided:
        meaning = (
            "No operation of any edge has a clearly larger weight than the uniform one: nothing has been decided yet."
        )
        advice = f"{TRAIN}, or search for more steps."
        found.append(Indicator("Largest softmax weight", percent(state.largest_weight, 1), WATCH, meaning, advice))
    return found


def _few(search: Stage) -> Indicator | None:
    settings, counts = search.config.get("search"), search.data.get("train")
    if not settings or not counts:
        return None
    own = make_section(SearchConfig, settings, str(search.path / "config.yaml"), "Restore it.")
    few = few_images(round(sum(counts) * own.split.weights), own)
    if few is None:
        return None
    value = f"{few.images:,}, each passed {few.passes:.0f} times"
    advice = "search again with that method, or give the weights more images (search.split.weights)."
    return Indicator("Images for the weights", value, WATCH if few.prone else GOOD, str(few), advice)


def _without_parameters(genotype: Genotype) -> list[Indicator]:
    judged = assess(genotype).cells
    return [
        Indicator(
            f"Operations that learn in the {cell_title(name)}",
            f"0 of {len(cell.edges)}",
            WATCH,
            "No operation of this cell has weights; a stack of it can learn hardly anything.",
            "search again with search.guard=best or another seed.",
        )
        for name, cell in genotype.cells.items()
        if judged[name].judged and all(operation in PARAMETER_FREE for operation, _, _ in cell.edges)
    ]


def _short_training(rounds: Sequence[Mapping[str, Any]]) -> Indicator:
    losses = [row["loss"] for row in rounds[-1]["candidates"]]
    shown = ["not finite" if loss is None else f"{loss:.3f}" for loss in losses[:2]]
    return Indicator(
        "Choice by short training",
        f"loss {shown[0]}" + (f", next cell {shown[1]}" if len(shown) > 1 else ""),
        GOOD if losses[0] is not None else WATCH,
        f"{len(rounds[0]['candidates'])} cells, the one that the alphas preferred and others drawn by their weights, "
        f"were trained from scratch; the best went on to {rounds[-1]['steps']} steps. The loss is on images that none "
        "of them was trained on. The alphas narrowed the choice only, so that their margins do not say how sure it is.",
        "lower derive.trained.lr, and derive again: no candidate has a finite loss.",
    )


def _margins(edges: Sequence[Choice]) -> Indicator:
    kept = [choice for choice in edges if choice.chosen] or edges
    ordered = sorted(choice.margin for choice in kept)
    median = ordered[len(ordered) // 2]
    return Indicator(
        "Margin of the choices",
        f"median {percent(median, 1)}, smallest {percent(ordered[0], 1)}",
        GOOD if median >= SMALL_MARGIN else WATCH,
        "The lead of the strongest operation of an edge over the runner-up, in softmax weight. Near zero the choice is "
        "little better than chance, and another seed may choose otherwise.",
        f"{TRAIN}, or search for more steps.",
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
        f"{percent(mean, 0)} of the maximum",
        GOOD if EXTREME_ENTROPY <= mean <= 1 - EXTREME_ENTROPY else WATCH,
        "100 %: all operations still weigh the same, nothing is decided. 0 %: every edge has one operation left, "
        "nothing can change any more. During a search it should fall slowly from 100 %.",
        "near 100 % search for more steps, or with larger ones of the alphas (search.alphas.lr, search.alphas.step); "
        "near 0 % with smaller ones.",
    )


def _discretisation(lost: float, mixed: float | None) -> Indicator:
    return Indicator(
        "Discretisation gap",
        f"{100 * lost:.1f} points" + (f" of {percent(mixed, 1)}" if mixed is not None else ""),
        GOOD if lost < WIDE_DISCRETISATION else WATCH,
        "The supernet's accuracy on held-out images minus that with the derived cell alone. After a wide gap the cell "
        "may still be good once it is retrained, but the mixture's accuracy says little about it.",
        "judge the cell by its retraining, or by short training (derive.rule=trained), and not by the supernet.",
    )


def _stability(record: Mapping[str, Any]) -> Indicator:
    unchanged, epochs = record["epochs_unchanged"], record["epochs"]
    return Indicator(
        "Stability of the cell",
        f"unchanged for {unchanged} of {epochs} epochs at the end",
        GOOD if unchanged >= max(min(STABLE_EPOCHS, epochs), STABLE_SHARE * epochs) else WATCH,
        f"{percent(record['edges_unchanged'], 0)} of its edges had the same operation in all of the last "
        f"{record['window']} epochs. A cell that still changes at the end depends on when the search was stopped.",
        f"{TRAIN}, or search for more epochs.",
    )


def _gap(gap: float, loss: float | None) -> Indicator:
    scale = abs(loss) if loss else 1.0
    return Indicator(
        "Gap f(y) − f(θ)",
        f"{gap:.4g}",
        WATCH if gap < -NEGATIVE_GAP * scale else GOOD,
        "θ tracks the minimum of the lower objective near y, so the gap should be small and not negative. Where it is "
        "negative θ lags behind, and its correction of the architecture gradient may point the wrong way.",
        "let θ follow faster, with search.moreau.theta_steps=2 or a larger search.moreau.theta_lr.",
    )


def _overfit(held_out: float, upper: float) -> Indicator:
    return Indicator(
        "Held-out accuracy against the architecture split",
        f"{percent(held_out)} against {percent(upper)}",
        WATCH if upper - held_out > WIDE_OVERFIT else GOOD,
        "Weights and alphas are both trained with the architecture split, the held-out images are seen by neither. A "
        "wide difference means that the supernet has overfitted its training images.",
        "search for fewer epochs, on more images, or with more augmentation (search.augment.cutout).",
    )
