"""The page of a comparison of methods: dots, means, tables and cost curves, and how to read them."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Any

from nas_moreau.architecture.spaces.genotype import Genotype
from nas_moreau.architecture.spaces.percentile import SIZE, limit
from nas_moreau.drawing.cell import draw_genotype
from nas_moreau.report.charts import Series, cost_chart, dot_chart
from nas_moreau.report.format import DASH, cent, duration, memory, number, p_value, ranges, spread
from nas_moreau.report.html import (
    command_line,
    definition_list,
    details,
    drawing,
    figure,
    header,
    page,
    paragraph,
    section,
    table,
)
from nas_moreau.report.record import configuration_section, environment_section
from nas_moreau.report.significance import ranking, runs_for_certainty
from nas_moreau.report.verdict import NextStep
from nas_moreau.runs.atomic import write_atomic
from nas_moreau.runs.environment import first_command
from nas_moreau.runs.history import Stage
from nas_moreau.search.random_cell import RANDOM

FIGURE_NAMES = {
    "table": "accuracy in the table",
    "retrained_accuracy": "test accuracy after retraining",
    "retrained_held_out_accuracy": "held-out accuracy after retraining",
}
MOST_SEEDS = 40
"""Seeds of every method beyond which a comparison is not worth its time."""
PERCENTILE = "predicted percentile among random cells"
Curves = Mapping[str, Sequence[Sequence[tuple[float, float]]]]
Result = Mapping[str, Any]
"""Plain data of a comparison, as in its result.json."""
Table = tuple[list[str], list[list[str]]]
"""Headings and rows of texts."""


def write_comparison(path: str | os.PathLike[str], result: Result, curves: Curves) -> Path:
    """Writes compare.html into the folder of a comparison and returns its path.

    Args:
        path: The folder.
        result: The result.
        curves: Method -> for each seed (seconds, accuracy) points.
    """
    folder = Path(path)
    target = folder / "compare.html"
    write_atomic(target, render(result, curves, folder).encode("utf-8", "replace"))
    return target


def name_of(line: Mapping[str, Any]) -> str:
    """Returns what a row or a line of the summary is called: the method, with its derivation rule."""
    return line["method"] if line["rule"] is None else f"{line['method']} +{line['rule']}"


def summary_table(result: Result, figure_name: str) -> Table:
    """Returns the summary of one figure ("table", "retrained_accuracy", ...) as a table of texts.

    Accuracies are in per cent. Below the methods are the exact baselines of the table, if there is one.
    """
    near = figure_name == "table" and result["retraining"] is not None
    head = [
        "method",
        "n",
        "mean ± std %",
        "min %",
        "max %",
        "RI %",
        f"p against {result['baseline']}",
        "idle share",
        "collapsed",
        *(["near the best"] if near else []),
        "search time",
        "peak memory",
    ]
    rows = []
    for line in result["summary"]:
        if line["figure"] == figure_name:
            figures = [spread(line["mean"], line["std"]), cent(line["min"]), cent(line["max"])]
            against = [number(line["relative_improvement"], "+.2f"), p_value(line["p_value"])]
            health = [number(line["idle_share"]), f"{line['collapsed']} of {line['n']}"]
            health += [f"{line['near_best']} of {line['n']}"] if near else []
            cost = [duration(line["search_seconds"] or None), memory(line["search_peak_memory_bytes"])]
            rows.append([name_of(line), str(line["n"]), *figures, *against, *health, *cost])
    for line in result["baselines"] if figure_name == "table" else ():
        figures = [spread(line["mean"], None if line["n"] == 1 else line["std"]), cent(line["min"]), cent(line["max"])]
        improvement = 100 * (line["mean"] / result["baselines"][0]["mean"] - 1)
        rest = [DASH] * (len(head) - 7)
        rows.append([f"{line['name']} (exact)", f"{line['n']:,}", *figures, number(improvement, "+.2f"), *rest])
    return head, rows


def percentile_table(result: Result) -> Table:
    """Returns the summary of the predicted percentiles as a table of texts; no rows where no cell has any."""
    head = ["method", "n", "mean ± std", "min", "max", "p"]
    head += ["by ridge", "p", "by trees", "p", "of its size", "p", "none"]
    lines = {(line["figure"], name_of(line)): line for line in result["summary"]}
    every = [name_of(row) for row in result["rows"]]
    rows = []
    for (key, name), line in lines.items():
        if key != "percentile":
            continue
        middle = number(line["mean"], ".1f") + ("" if line["std"] is None else f" ± {line['std']:.1f}")
        ends = [number(line[end], ".1f") for end in ("min", "max")]
        others = [lines.get((f"percentile_{kind}", name), {}) for kind in ("ridge", "trees", "of_size")]
        parts = [text for part in others for text in (number(part.get("mean"), ".1f"), p_value(part.get("p_value")))]
        left_out = str(every.count(name) - line["n"])
        rows.append([name, str(line["n"]), middle, *ends, p_value(line["p_value"]), *parts, left_out])
    return head, rows


def conditions_table(result: Result) -> Table:
    """Returns what each method costs and how it is tuned, as texts."""
    head = ["method", "evaluations a step", "steps", "step of the alphas", "settings for it alone"]
    rows = [
        [
            line["method"],
            str(line["evaluations"]),
            DASH if line["steps"] is None else f"{line['steps']:,}",
            line["alphas"] or DASH,
            " ".join(line["settings"]) or DASH,
        ]
        for line in result["conditions"]
    ]
    return head, rows


def ranking_table(result: Result) -> Table:
    """Returns Kendall's tau of each method, and of rankings of the same cells without a search, as texts."""
    rows = [
        [name_of(line), number(line["tau_running"]), number(line["tau_batch"])]
        for line in result["summary"]
        if line["figure"] == "table" and line["tau_running"] is not None
    ]
    if again := result["retraining"]:
        name = f"a second training ({again['pairs']} cells that the table has twice)"
        rows.append([name, number(again["tau"]), DASH])
    references = {name: tau for name, tau in result["ranking"].items() if name != "cells"}
    for name, tau in references.items():
        rows.append([{"parameters": "parameter count"}.get(name, name), number(tau), DASH])
    return ["ranked by", "tau, running statistics", "tau, statistics of the batch"], rows


def render(result: Result, curves: Curves, folder: Path) -> str:
    """Returns the HTML of the page; `folder` has the environment and configuration of the comparison."""
    name = folder.resolve().name or "comparison"
    stage = Stage(folder, "compare")
    parts = [_header(result, name, folder), *(_figure(result, key) for key in FIGURE_NAMES), _percentiles(result)]
    parts.append(_ranking(result))
    parts += [_best_cells(result), _cost(result, curves), _conditions(result), _reading_guide(result)]
    parts.append(_every_cell(result))
    return page(
        f"{name} · comparison",
        [*parts, environment_section(stage.environment), configuration_section(stage.config)],
    )


def outcome(result: Result) -> str:
    """Returns in a few sentences which method is best and how sure that is, percentiles, collapsed and failed runs."""
    key = next((key for key in FIGURE_NAMES if _groups(result, key)), None)
    found = ranking(FIGURE_NAMES[key], _groups(result, key)) if key else []
    if not result["rows"]:
        found.append("There is no cell yet.")
    if key == "table" and result["retraining"] is not None:
        best = max((line for line in result["summary"] if line["figure"] == key), key=lambda line: line["mean"])
        found.append(
            f"{best['near_best']} of {best['n']} cells of {name_of(best)} are not distinguishable from the best of "
            f"the table ({cent(result['retraining']['near_best'])} % up)."
        )
    if means := [(-line["mean"], line) for line in result["summary"] if line["figure"] == "percentile"]:
        ranked = [line for _, line in sorted(means, key=lambda pair: pair[0])]
        found.append(f"Mean predicted percentile of the cells: {', '.join(map(_mean_percentile, ranked))}.")
        of_size = {name_of(line): line for line in result["summary"] if line["figure"] == "percentile_of_size"}
        if known := [of_size[name] for line in ranked if (name := name_of(line)) in of_size]:
            found.append(f"Among random cells of their size: {', '.join(map(_mean_percentile, known))}.")
        if any(line["p_value"] is not None for line in ranked):
            found.append(f"p: permutation test over seeds against {result['baseline']}.")
    if collapsed := sum(row["verdict"] == "collapsed" for row in result["rows"]):
        found.append(f"{collapsed} of {len(result['rows'])} cells have collapsed.")
    if failed := result["failed"]:
        found.append(f"{len(failed)} runs failed: {'; '.join(failed)}.")
    return " ".join(found)


def next_step(result: Result, folder: Path) -> NextStep | None:
    """Returns what to do next: run what failed again, add seeds until chance is ruled out, use the best cell.

    Args:
        result: The result.
        folder: Of the comparison.
    """
    begun = shlex.split(first_command(Stage(folder, "compare").environment))
    again = begun[begun.index("compare") :] if "compare" in begun else []
    if result["failed"] and again:
        return NextStep("Run again what failed", _resumed(again, folder))
    key = next((key for key in (*FIGURE_NAMES, "percentile") if _groups(result, key)), None)
    if key is None:
        return None
    first, *others = sorted(_groups(result, key).values(), key=lambda values: -fmean(values))
    needed = runs_for_certainty(first, others[0]) if others else None
    if needed is not None and needed <= MOST_SEEDS and again:
        reason = f"See with {needed} seeds whether the first two differ by more than chance"
        return NextStep(reason, _resumed(again, folder, needed))
    latest = {row["search"]: row for row in result["rows"]}.values()  # a rule's cell follows that of the space's
    best = max((row for row in latest if row[key] is not None), key=lambda row: row[key], default=None)
    if best is None:
        return None
    cell = shlex.quote(str(folder / "searches" / best["search"]))
    if key == "retrained_accuracy":
        why = "" if best["method"] == RANDOM else " --why"
        return NextStep("Look at the best cell", f"nas-moreau show {cell}{why}")
    return NextStep("Train the best cell from scratch", f"nas-moreau retrain {cell}")


def _resumed(words: Sequence[str], folder: Path, seeds: int | None = None) -> str:
    """Returns the command that resumes a comparison, with that many seeds of every method if a number is given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--output", "--methods", "--seeds"):
        parser.add_argument(name)
    parser.add_argument("--resume", action="store_true")
    given, rest = parser.parse_known_args(words)
    methods, chosen = given.methods or "", given.seeds
    if seeds is not None:
        methods, chosen = ",".join(part.partition(":")[0] for part in methods.split(",")), f"0-{seeds - 1}"
    several = ["--seeds", chosen] if chosen else []
    command = ["nas-moreau", *rest, "--methods", methods, *several, "--output", str(folder), "--resume"]
    return shlex.join(command)


def _mean_percentile(line: Mapping[str, Any]) -> str:
    against = "" if line["p_value"] is None else f", p {p_value(line['p_value'])}"
    return f"{name_of(line)} {line['mean']:.0f} (n = {line['n']}{against})"


def _groups(result: Result, key: str) -> dict[str, list[float]]:
    """Returns name -> a figure of its rows that have it."""
    groups: dict[str, list[float]] = {}
    for row in result["rows"]:
        if row[key] is not None:
            groups.setdefault(name_of(row), []).append(row[key])
    return groups


def _header(result: Result, name: str, folder: Path) -> str:
    rows = result["rows"]
    facts = [f"space {result['space']}", f"data {result['data']}", f"{len(rows)} cells"]
    facts.append(f"seeds {ranges(sorted({row['seed'] for row in rows}))}")
    todo = next_step(result, folder)
    return header("comparison", name, facts, outcome(result), "" if todo is None else command_line(*todo))


def _figure(result: Result, key: str) -> str:
    groups = _groups(result, key)
    if not groups:
        return ""
    lines = [(line["name"], line["mean"]) for line in result["baselines"]] if key == "table" else []
    chart = dot_chart(key, [Series(name, values) for name, values in groups.items()], lines, "accuracy (%)")
    head, rows = summary_table(result, key)
    title = FIGURE_NAMES[key][:1].upper() + FIGURE_NAMES[key][1:]
    title += f" ({result['column']})" if key == "table" and result["column"] else ""
    note = "A dot is a seed; the diamond is the mean, its bars one sample standard deviation."
    return section(key, title, figure("", chart, note) + table(head, rows, numbers=range(1, len(head))))


def _percentiles(result: Result) -> str:
    groups = _groups(result, "percentile")
    if not groups:
        return ""
    series = [Series(name, values) for name, values in groups.items()]
    chart = dot_chart("percentile", series, [("random", 50.0)], "percentile", percent=False)
    head, rows = percentile_table(result)
    text = (
        f"{limit()} Mean of both models, each model alone, and permutation tests over seeds against "
        f"{result['baseline']} (p). {SIZE} Collapsed cells have no percentile (column none), so that a method with "
        "many of them looks better here than it is."
    )
    note = "A dot is a seed; the diamond is the mean, its bars one sample standard deviation."
    shown = paragraph(text) + figure("", chart, note) + table(head, rows, numbers=range(1, len(head)))
    return section("percentile", PERCENTILE[:1].upper() + PERCENTILE[1:], shown)


def _ranking(result: Result) -> str:
    if not result["ranking"]:
        return ""
    text = (
        "Kendall's tau-b between the table and the one-hot losses of each final supernet on held-out images, over "
        f"{result['ranking']['cells']} cells made of skip connections and convolutions; mean over seeds."
    )
    head, rows = ranking_table(result)
    return section("ranking", "Does the supernet rank cells?", paragraph(text) + table(head, rows, numbers=(1, 2)))


def _cost(result: Result, curves: Curves) -> str:
    what = "Best held-out accuracy of the supernet so far."
    if result["column"]:
        what = "Accuracy in the table of the cell that the search would have returned at that time."
    chart = cost_chart("cost", curves, "accuracy (%)")
    note = f"{what} Thin: a seed. Thick: the mean after the same epoch."
    return section("cost", "Cost", figure("", chart, note)) if chart else ""


def _conditions(result: Result) -> str:
    text = (
        "An evaluation is one forward and backward pass over a batch. All methods share images, splits, network, steps "
        "and batches; what only one of them has is in the last column."
    )
    head, rows = conditions_table(result)
    inside = paragraph(text) + table(head, rows, numbers=(1, 2))
    return section("conditions", "How each method ran", inside)


def _reading_guide(result: Result) -> str:
    pairs = [
        ("std", "sample standard deviation over the n seeds; of the baselines, over all their cells"),
        (
            "RI",
            "relative improvement over random cells, 100 (accuracy - mean) / mean; with a table the mean of random "
            "cells is exact: that of all its cells",
        ),
        (
            "p",
            f"two-sided permutation test of the difference of means to {result['baseline']}, all ways to divide the "
            "values counted; with few seeds it cannot be small",
        ),
        ("+rule", "the cell of another derivation rule than the space's; the row without it is the cell before"),
        ("idle share", "edges that carry skip_connect, none or noise, reduction cells left out; mean"),
        ("collapsed", "cells with more than half of their edges idle"),
        *([("near the best", _near(result["retraining"]))] if result["retraining"] else []),
        ("search time", "wall-clock time of the search, held-out evaluations and checkpoints included; mean"),
        ("peak memory", "peak of a search's process, images and libraries included; largest of the seeds"),
    ]
    return section("guide", "How to read this", definition_list(pairs))


def _near(again: Mapping[str, Any]) -> str:
    return (
        f"cells from {cent(again['near_best'])} % up: two trainings of one network differ by {cent(again['noise'])} "
        "points (root mean square, from cells of the table that compute the same function), so that these are not "
        "distinguishable from the best"
    )


def _best_cells(result: Result) -> str:
    """Returns a drawing of each method's best cell by the first figure that there is, the best method first."""
    known = [key for key in FIGURE_NAMES if any(row[key] is not None for row in result["rows"])]
    if not known:
        return ""
    key, best = known[0], dict[str, Mapping[str, Any]]()
    for row in sorted(result["rows"], key=lambda row: -1.0 if row[key] is None else row[key], reverse=True):
        if row[key] is not None:
            best.setdefault(name_of(row), row)
    shown = [
        f"<h3>{escape(name)}: {cent(row[key])} %, seed {row['seed']}</h3>"
        + drawing(draw_genotype(Genotype.from_json(row["genotype"])))
        for name, row in best.items()
    ]
    note = paragraph(f"By {FIGURE_NAMES[key]}. One cell of many: what a method finds on average stands above.")
    return section("best-cells", "The best cell of each method", note + "".join(shown))


def _every_cell(result: Result) -> str:
    keys = [key for key in FIGURE_NAMES if any(row[key] is not None for row in result["rows"])]
    head = ["method", "seed", *(f"{FIGURE_NAMES[key]} %" for key in keys), "supernet, held out %", "idle share"]
    head += ["percentile", "of its size", "parameters", "search", "retraining"]
    rows = [
        [
            name_of(row),
            str(row["seed"]),
            *(cent(row[key]) for key in (*keys, "held_out_accuracy")),
            number(row["idle_share"]),
            number(row["percentile"], ".0f"),
            number(row.get("percentile_of_size"), ".0f"),
            number(row["parameters"], ",d"),
            duration(row["search_seconds"]),
            duration(row["retrain_seconds"]),
            row["verdict"],
            row["arch"] or row["digest"],
        ]
        for row in result["rows"]
    ]
    inside = table([*head, "verdict", "cell"], rows, numbers=range(1, len(head)))
    return section("cells", "Every cell", details(f"{len(rows)} rows", inside))
