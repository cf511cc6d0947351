"""The report of a run: one HTML file that tells the whole story to someone who was not there.

It needs nothing from anywhere else (no script, no font, no address), follows the reader's light or dark scheme, and is
the same for the same files.
"""

from __future__ import annotations

import base64
import os
from html import escape
from pathlib import Path
from typing import Any

from nas_moreau.drawing.cell import draw_genotype
from nas_moreau.drawing.network import draw_network
from nas_moreau.drawing.operation_style import label, shorten
from nas_moreau.report.charts import Series, alpha_panels, confusion_chart, line_chart
from nas_moreau.report.choices import choices, kept_weights
from nas_moreau.report.html import breakable, definition_list, drawing, figure, page, section, table
from nas_moreau.report.indicators import (
    GOOD,
    LEVELS,
    WATCH,
    duration,
    health,
    indicators,
    memory,
    millions,
    percent,
    verdict,
)
from nas_moreau.report.record import record_sections
from nas_moreau.runs.atomic import write_atomic
from nas_moreau.runs.columns import charts_of
from nas_moreau.runs.folder import WORST_FILE
from nas_moreau.runs.history import Run, Stage, network_sizes, read_run

_LARGEST_PICTURE = 1 << 20  # bytes; what this package draws is far smaller


def write_report(run_path: str | os.PathLike[str]) -> Path:
    """Writes report.html into a run folder and returns its path.

    Args:
        run_path: The folder of a search or a retraining, or the parent of both. Whatever is missing is left out.

    Raises:
        InputError: The folder holds no run, or a file in it is damaged.
    """
    path = Path(run_path)
    target = path / "report.html"
    write_atomic(target, render(read_run(path)).encode("utf-8", "replace"))
    return target


def render(run: Run) -> str:
    """Returns the HTML of the report."""
    name = run.path.resolve().name or "run"
    parts = [_header(run, name), _cells(run)]
    if run.search is not None:
        parts += [_search(run.search), _choices(run.search), _evolution(run.search)]
    if run.retrain is not None:
        parts += [section("Retraining", _charts(run.retrain)), _evaluation(run.retrain)]
    parts += record_sections(run)
    return page(f"{name} · nas_moreau report", parts)


def _header(run: Run, name: str) -> str:
    config = run.source.config
    data = (config.get("data") or {}).get("name") if isinstance(config.get("data"), dict) else config.get("data")
    facts = [
        str(value)
        for value in (
            run.search.result.get("method", (config.get("search") or {}).get("method")) if run.search else None,
            f"space {config['space']}" if "space" in config else None,
            f"data {data}" if data else None,
            f"seed {config['seed']}" if "seed" in config else None,
        )
        if value is not None
    ]
    shown = [(f"{stage.name}: {stage.state}", GOOD if stage.state == "finished" else WATCH) for stage in run.stages]
    if run.search is not None and (state := health(run.search)) is not None:
        shown.append((f"cell: {state.verdict}", LEVELS[state.verdict]))
    badges = "".join(f'<span class="badge {level}">{escape(text)}</span>' for text, level in shown)
    return (
        f"<header><p class=eyebrow>nas_moreau report</p><h1>{escape(name)}</h1>"
        f"<p class=facts>{escape(' · '.join(facts))}</p><p>{badges}</p>"
        f"<p class=verdict>{escape(verdict(run))}</p>{_tiles(run)}</header>"
    )


def _tiles(run: Run) -> str:
    tiles: list[tuple[str, str, str]] = []

    def add(value: Any, form: Any, title: str, note: str) -> None:
        if value is not None:
            tiles.append((form(value), title, note))

    if run.retrain is not None:
        add(run.test_accuracy, percent, "test accuracy", "after retraining")
        add(run.retrain.number("parameters"), millions, "parameters", "auxiliary head excluded")
        add(run.retrain.number("macs"), millions, "multiply-adds", "one image")
    if run.search is not None:
        add(run.search.number("held_out_accuracy"), percent, "held-out accuracy", "supernet, images no level saw")
    known = [stage.seconds for stage in run.stages if stage.seconds is not None]
    add(sum(known) if known else None, duration, "wall-clock time", " + ".join(stage.name for stage in run.stages))
    peaks = [stage.number("peak_memory_bytes") for stage in run.stages]
    largest = max((value for value in peaks if value), default=None)
    add(largest, memory, "peak memory", "of the stages")
    shown = "".join(
        f"<div class=tile><strong>{escape(value)}</strong>"
        f"<span>{escape(title)}</span><small>{escape(note)}</small></div>"
        for value, title, note in tiles
    )
    return f'<div class="tiles">{shown}</div>'


def _cells(run: Run) -> str:
    genotype = run.genotype
    if genotype is None:
        return ""
    weights = kept_weights(run.search) if run.search is not None and run.search.genotype == genotype else None
    lines = "".join(
        f"<tr><td>{escape(name)}</td><td><code>"
        + escape("; ".join(f"{a}→{b} {operation}" for operation, a, b in cell.edges))
        + "</code></td></tr>"
        for name, cell in genotype.cells.items()
    )
    text = (
        "<p>A cell is a small graph: numbered circles are feature maps, boxes are operations, and a circle is the sum "
        "of what arrives.</p>"
    )
    whole = (
        f"{drawing(draw_network(genotype, network_sizes(genotype, run.path)))}<p>Every block is a cell, from the image "
        "on the left to the classes on the right; the taller it is, the larger the image that it works on. Below: how "
        "many of a kind, channels and resolution of their output.</p>"
    )
    return section(
        "The cell" if len(genotype.cells) == 1 else "The cells",
        f"{text}{drawing(draw_genotype(genotype, weights))}{whole}"
        f"<details><summary>As text (digest {escape(genotype.digest())})</summary><table>{lines}</table></details>",
    )


def _charts(stage: Stage) -> str:
    """Returns a chart for each group of columns in the stage's metrics.csv."""
    epochs = [epoch for epoch in stage.metrics.get("epoch", []) if epoch is not None]
    shown = ""
    for key, (chart, curves) in charts_of(stage.metrics).items():
        series = [Series(title, stage.metrics[name]) for name, title in curves.items()]
        if chart.may_be_zero and not any(value for line in series for value in line.values):
            continue
        svg = line_chart(f"{stage.name}-{key}", epochs, series, chart.unit, log=chart.log, percent=chart.percent)
        shown += figure(chart.title, svg, chart.note)
    return f'<div class="charts">{shown}</div>' if shown else "<p>No epoch was finished.</p>"


def _search(search: Stage) -> str:
    if search.result.get("method") == "random":
        return section(
            "How the cell was found", "<p>It was drawn at random from the search space, without a search.</p>"
        )
    signs = "".join(
        f'<div class="sign {sign.level}"><h3>{escape(sign.name)}</h3><p class=value>{escape(sign.value)}</p>'
        f"<p>{escape(sign.meaning)}</p></div>"
        for sign in indicators(search)
    )
    return section("Is the search healthy?", (f'<div class="signs">{signs}</div>' if signs else "") + _charts(search))


def _choices(search: Stage) -> str:
    found = choices(search)
    if not found:
        return ""
    rows = [
        [
            choice.cell,
            "\u00a0→\u00a0".join(map(str, choice.row.edge)),
            ", ".join(map(label, choice.chosen)) or "–",
            label(choice.strongest),
            percent(choice.weight, 1),
            label(choice.runner_up) if choice.runner_up else "–",
            percent(choice.weight - choice.margin, 1) if choice.runner_up else "–",
            percent(choice.margin, 1),
        ]
        for choice in found
    ]
    head = ["cell", "edge", "in the cell", "strongest", "weight", "runner-up", "weight", "margin"]
    return section(
        "Why these operations",
        "<p>For every edge of the search space: the operation with the largest softmax weight at the end, the one "
        "after it, and by how much it leads. Edges in bold are part of the cell; the others lost against edges into "
        "the same node whose strongest operation weighed more.</p>"
        + table(head, rows, numbers=(4, 6, 7), bold=[bool(choice.chosen) for choice in found]),
    )


def _evolution(search: Stage) -> str:
    epochs, tables = list(search.alphas), list(search.alphas.values())
    panels = ""
    for name, rows in tables[-1].cells.items() if tables else ():
        edges = {
            row.edge: {
                operation: [table.cells[name][i].weights[operation] for table in tables] for operation in row.weights
            }
            for i, row in enumerate(rows)
        }
        chart = alpha_panels(f"alphas-{name}", epochs, edges)
        panels += f'<div class="wide">{figure(name if name == "cell" else f"{name} cell", chart, "")}</div>'
    note = "<p>Softmax weight of each operation on each edge, epoch by epoch.</p>"
    return section("How the alphas moved", note + panels) if panels else ""


def _evaluation(retrain: Stage) -> str:
    data = retrain.evaluation
    classes, confusion = data.get("classes"), data.get("confusion")
    if not classes or not confusion:
        return ""
    names = [shorten(str(name), 60) for name in classes]
    parts = [
        figure(
            "Confusion matrix", confusion_chart("confusion", confusion, names), "Rows: true class. Columns: prediction."
        )
    ]
    accuracies = [row[i] / sum(row) if sum(row) else None for i, row in enumerate(confusion)]
    ranked = sorted((value, i) for i, value in enumerate(accuracies) if value is not None)
    bars = "".join(
        f"<tr><td>{breakable(names[i])}</td><td class=bar><span style='width:{100 * value:.1f}%'></span></td>"
        f"<td class=number>{percent(value, 1)}</td><td class=number>{sum(confusion[i]):,}</td></tr>"
        for value, i in ranked[:40]
    )
    more = f"<p>The {len(ranked) - 40} best classes are left out.</p>" if len(ranked) > 40 else ""
    head = "<tr><th>class</th><th>accuracy, worst first</th><th></th><th class=number>images</th></tr>"
    side = f"<table class=bars>{head}{bars}</table>{more}"
    wrong = sorted(
        ((-value, i, j) for i, row in enumerate(confusion) for j, value in enumerate(row) if i != j and value)
    )[:5]
    mixed = (
        definition_list([(f"{names[i]} taken for {names[j]}", f"{-count:,} times") for count, i, j in wrong])
        if wrong
        else "<p>Not one image was misclassified.</p>"
    )
    parts.append(f"<div>{side}<h3 class=apart>Most frequent confusions</h3>{mixed}</div>")
    return section("Where it errs", f'<div class="charts">{"".join(parts)}</div>{_worst(retrain)}')


def _worst(retrain: Stage) -> str:
    path = retrain.path / WORST_FILE
    if not path.is_file() or path.stat().st_size > _LARGEST_PICTURE:
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        '<h3 class=apart>Test images it is most wrong about</h3><div class="wide">'
        f'<img src="data:image/png;base64,{data}" alt="misclassified test images"></div>'
        "<p>First line: the true class. Second line: what the network said, and how sure it was.</p>"
    )
