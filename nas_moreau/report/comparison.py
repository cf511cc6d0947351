"""The page of a comparison: one HTML file with dots, means, tables and cost curves, and what they mean."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml

from nas_moreau.report.charts import Series, cost_chart, dot_chart
from nas_moreau.report.html import definition_list, figure, page, section, table
from nas_moreau.report.indicators import cent, memory, ranges, spread
from nas_moreau.runs.atomic import write_atomic
from nas_moreau.runs.plain_files import read_json, read_yaml

FIGURE_NAMES = {
    "table": "accuracy in the table",
    "retrained_accuracy": "test accuracy after retraining",
    "retrained_held_out_accuracy": "held-out accuracy after retraining",
}
Curves = Mapping[str, Sequence[Sequence[tuple[float, float]]]]


def write_page(path: str | os.PathLike[str], result: Mapping[str, Any], curves: Curves) -> Path:
    """Writes compare.html into the folder of a comparison and returns its path.

    Args:
        path: The folder.
        result: As `nas_moreau.compare` returns it.
        curves: Method -> for each seed (seconds, accuracy) points.
    """
    folder = Path(path)
    target = folder / "compare.html"
    write_atomic(target, render(result, curves, folder).encode("utf-8", "replace"))
    return target


def summary_table(result: Mapping[str, Any], name: str) -> tuple[list[str], list[list[str]]]:
    """Returns head and rows of the summary of one figure ("table", "retrained_accuracy", ...), as texts.

    Accuracies are in per cent. Below the methods stand the exact baselines of the table, where there are any.
    """
    head = ["method", "n", "mean ± std %", "min %", "max %", "RI %", f"p against {result['baseline']}", "idle share",
            "collapsed", "search s", "peak memory"]  # fmt: skip
    rows = [
        [
            row["method"], str(row["n"]), spread(row["mean"], row["std"]), cent(row["min"]), cent(row["max"]),
            _number(row["relative_improvement"], "+.2f"), _p(row["p_value"]), _number(row["idle_share"]),
            f"{row['collapsed']} of {row['n']}", _number(row["search_seconds"] or None, ".0f"),
            memory(row["search_peak_memory_bytes"]) if row["search_peak_memory_bytes"] else "–",
        ]
        for row in result["summary"]
        if row["figure"] == name
    ]  # fmt: skip
    for row in result["baselines"] if name == "table" else ():
        one = row["n"] == 1
        improvement = 100 * (row["mean"] / result["baselines"][0]["mean"] - 1)
        rows.append([
            f"{row['name']} (exact)", f"{row['n']:,}", spread(row["mean"], None if one else row["std"]),
            cent(row["min"]), cent(row["max"]), f"{improvement:+.2f}", *["–"] * 5,
        ])  # fmt: skip
    return head, rows


def ranking_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns head and rows of Kendall's tau by method, beside what ranks the same cells without a search."""
    ranking = result["ranking"]
    rows = [
        [row["method"], _number(row["tau_running"]), _number(row["tau_batch"])]
        for row in result["summary"]
        if row["figure"] == "table" and row["tau_running"] is not None
    ]
    rows += [
        [{"parameters": "parameter count"}.get(name, name), _number(value), "–"]
        for name, value in ranking.items()
        if name != "cells"
    ]
    return ["ranked by", "tau, running statistics", "tau, statistics of the batch"], rows


def render(result: Mapping[str, Any], curves: Curves, folder: Path) -> str:
    """Returns the HTML of the page."""
    name = folder.resolve().name or "comparison"
    column = f" ({result['column']})" if result["column"] else ""
    parts = [_header(result, name)]
    for key, words in FIGURE_NAMES.items():
        groups: dict[str, list[float]] = {}
        for row in result["rows"]:
            if row[key] is not None:
                groups.setdefault(row["method"], []).append(row[key])
        if not groups:
            continue
        lines = [(row["name"], row["mean"]) for row in result["baselines"]] if key == "table" else []
        chart = dot_chart(key, [Series(label, values) for label, values in groups.items()], lines, "accuracy (%)")
        head, rows = summary_table(result, key)
        title = f"{words[:1].upper()}{words[1:]}{column if key == 'table' else ''}"
        note = "A dot is a seed; the diamond is the mean, its bars one sample standard deviation."
        parts.append(section(title, figure("", chart, note) + table(head, rows, numbers=range(1, len(head)))))
    if result["ranking"]:
        head, rows = ranking_table(result)
        text = (
            f"<p>Kendall's tau-b between the table and the one-hot losses of each final supernet on held-out images, "
            f"over {result['ranking']['cells']} cells made of skip connections and convolutions; mean over seeds.</p>"
        )
        parts.append(section("Does the supernet rank cells?", text + table(head, rows, numbers=(1, 2))))
    what = (
        "Accuracy in the table of the cell that the search would have returned after so many seconds."
        if result["column"]
        else "Best held-out accuracy of the supernet so far; what the cells reach after retraining stands above."
    )
    chart = cost_chart("cost", curves, "accuracy (%)")
    if chart:
        parts.append(section("Cost", figure("", chart, f"{what} Thin: a seed. Thick: the mean after the same epoch.")))
    parts += [_words(result), _cells(result), _record(folder)]
    return page(f"{name} · nas_moreau comparison", parts)


def _header(result: Mapping[str, Any], name: str) -> str:
    seeds = sorted({row["seed"] for row in result["rows"]})
    facts = f"space {result['space']} · data {result['data']} · {len(result['rows'])} cells · seeds {ranges(seeds)}"
    said = f"{len(result['failed'])} runs failed: {'; '.join(result['failed'])}" if result["failed"] else ""
    failed = f"<p class=verdict>{escape(said)}</p>" if said else ""
    return (
        f"<header><p class=eyebrow>nas_moreau comparison</p><h1>{escape(name)}</h1>"
        f"<p class=facts>{escape(facts)}</p>{failed}</header>"
    )


def _words(result: Mapping[str, Any]) -> str:
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
        ("search s", "wall-clock seconds of the search, held-out evaluations and checkpoints included; mean"),
        ("+selection", "the cell after another rule than the space's own; the row above it is the cell before"),
        ("peak memory", "the most that a search's process used, images and libraries included; largest of the seeds"),
        ("idle share", "edges that carry skip_connect, none or noise, reduction cells left out; mean"),
        ("collapsed", "cells with more than half of their edges idle"),
    ]
    return section("How to read this", definition_list(pairs))


def _cells(result: Mapping[str, Any]) -> str:
    keys = [key for key in FIGURE_NAMES if any(row[key] is not None for row in result["rows"])]
    head = ["method", "seed", *(FIGURE_NAMES[key] + " %" for key in keys), "supernet, held out %", "idle share",
            "verdict", "cell"]  # fmt: skip
    rows = [
        [
            row["method"], str(row["seed"]), *(cent(row[key]) for key in keys), cent(row["held_out_accuracy"]),
            _number(row["idle_share"]), row["verdict"] or "–", row["arch"] or row["digest"],
        ]
        for row in result["rows"]
    ]  # fmt: skip
    inside = table(head, rows, numbers=range(1, len(head) - 2))
    return section("Every cell", f"<details><summary>{len(rows)} rows</summary>{inside}</details>")


def _record(folder: Path) -> str:
    environment = read_json(folder / "environment.json") or {}
    pairs = [
        (
            key,
            ", ".join(f"{name} {version}" for name, version in value.items())
            if isinstance(value, dict)
            else str(value),
        )
        for key, value in environment.items()
        if value is not None and key != "earlier"
    ]
    path = folder / "config.yaml"
    text = yaml.safe_dump(read_yaml(path), sort_keys=False, allow_unicode=True) if path.exists() else ""
    details = f"<details><summary>config.yaml</summary><pre><code>{escape(text)}</code></pre></details>" if text else ""
    return section("For the record", definition_list(pairs) + details)


def _number(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)


def _p(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value >= 0.001 else "< 0.001"
