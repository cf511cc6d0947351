"""The report of a run: one HTML file with the outcome, the cells, all curves and everything to reproduce it.

It needs nothing from anywhere else (no script, no font, no address), follows the reader's light or dark scheme, and is
the same for the same files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from html import escape
from pathlib import Path

from nas_moreau.architecture.spaces.genotype import Genotype
from nas_moreau.architecture.spaces.percentile import limit, percentile, why_no_percentile
from nas_moreau.architecture.spaces.skeletons import DARTS
from nas_moreau.drawing.cell import draw_genotype
from nas_moreau.drawing.network import draw_network
from nas_moreau.drawing.operation_style import cell_title, label, shorten
from nas_moreau.errors import InputError
from nas_moreau.report.charts import Series, alpha_panels, confusion_chart, dot_chart
from nas_moreau.report.choices import choices
from nas_moreau.report.format import DASH, count, duration, memory, number, percent
from nas_moreau.report.html import (
    breakable,
    command_line,
    definition_list,
    details,
    drawing,
    figure,
    grid,
    header,
    page,
    paragraph,
    picture,
    section,
    signs,
    table,
    tiles,
)
from nas_moreau.report.indicators import GOOD, LEVELS, WATCH, health, indicators
from nas_moreau.report.module import render_module, stage_charts
from nas_moreau.report.record import record_sections
from nas_moreau.report.task import render_task
from nas_moreau.report.verdict import against_random, next_step, outcome
from nas_moreau.runs.atomic import is_full, write_atomic
from nas_moreau.runs.folder import WORST_FILE
from nas_moreau.runs.history import Run, Stage, network_sizes, open_stage, read_run
from nas_moreau.search.random_cell import RANDOM

SHOWN_CLASSES = 40
"""Classes whose accuracy is listed, the worst first."""


def write_report(run_path: str | os.PathLike[str], target: str | os.PathLike[str] | None = None) -> Path:
    """Writes the report of a run and returns its path.

    Args:
        run_path: The folder of a search, a retraining or a task of `solve`, or the parent of both stages. Whatever is
            missing is left out.
        target: The file; by default report.html in the run folder.

    Raises:
        InputError: The folder holds no run, a file in it is damaged, or the report cannot be written.
    """
    path = Path(run_path)
    stage = open_stage(path)
    text = render_task(stage) if stage is not None and stage.name == "solve" else render(read_run(path))
    place = path / "report.html" if target is None else Path(target)
    try:
        write_atomic(place, text.encode("utf-8", "replace"))
    except OSError as error:
        if is_full(error):
            raise
        cause = f"{place} cannot be written ({error.strerror})."
        raise InputError(cause, "Write it elsewhere: nas-moreau report RUN --output FILE.") from error
    return place


def render(run: Run) -> str:
    """Returns the HTML of the report."""
    if run.search is not None and run.search.name == "module":
        return render_module(run.search)
    parts = [_header(run), _cells(run)]
    if run.search is not None:
        parts += [_search(run.search), _choices(run.search), _evolution(run.search)]
    if run.retrain is not None:
        parts += [section("retraining", "Retraining", stage_charts(run.retrain)), _random(run), _errors(run.retrain)]
    return page(f"{_name(run)} · report", [*parts, *record_sections(run)])


def _random(run: Run) -> str:
    """Returns the section on random cells that were trained by the recipe of the found one."""
    if (found := against_random(run)) is None:
        return ""
    values = [value for stage in run.random if (value := stage.number("test_accuracy")) is not None]
    series = [Series("found", [run.test_accuracy or 0.0]), Series("random cells", values)]
    chart = dot_chart("against-random", series, [], "test accuracy (%)")
    rows = [["found", run.genotype.digest() if run.genotype else DASH, percent(run.test_accuracy)]]
    for stage in run.random:
        cell = stage.genotype.digest() if stage.genotype is not None else DASH
        rows.append([f"random {stage.path.name}", cell, percent(stage.number("test_accuracy"))])
    shown = paragraph(f"The found cell is {found}.") + figure("", chart, "A dot is a network.")
    return section("random", "Against chance", shown + table(["cell", "digest", "test accuracy"], rows, numbers=(2,)))


def _name(run: Run) -> str:
    return run.path.resolve().name or "run"


def _header(run: Run) -> str:
    config = run.source.config
    data, planned = ((config.get(key) or {}) for key in ("data", "search"))
    facts = []
    if run.search is not None and (method := run.search.result.get("method", planned.get("method"))):
        facts.append(str(method))
    facts += [f"space {config['space']}"] if "space" in config else []
    facts += [f"data {data['name']}"] if "name" in data else []
    facts += [f"seed {config['seed']}"] if "seed" in config else []
    marks = [(f"{stage.name}: {stage.state}", GOOD if stage.state == "finished" else WATCH) for stage in run.stages]
    if run.search is not None and (state := health(run.search)) is not None:
        marks.append((f"cell: {state.verdict}", LEVELS[state.verdict]))
    return header("report", _name(run), facts, outcome(run), command_line(*next_step(run)) + _tiles(run), marks)


def _tiles(run: Run) -> str:
    names = " + ".join(stage.name for stage in run.stages)
    seconds = [stage.seconds for stage in run.stages if stage.seconds is not None]
    peaks = [peak for stage in run.stages if (peak := stage.number("peak_memory_bytes"))]
    numbers: list[tuple[float | None, Callable[[float | None], str], str, str]] = []
    if run.retrain is not None:
        numbers += [
            (run.test_accuracy, percent, "test accuracy", "after retraining"),
            (run.retrain.number("parameters"), count, "parameters", "auxiliary head excluded"),
            (run.retrain.number("macs"), count, "multiply-adds", "one image"),
        ]
    if run.search is not None:
        accuracy = run.search.number("held_out_accuracy")
        numbers.append((accuracy, percent, "held-out accuracy", "supernet, images seen by neither level"))
    if run.genotype is not None and (rank := percentile(run.genotype)) is not None:
        note = "predicted, among random cells"
        note += "" if rank.of_size is None else f"; {rank.of_size:.0f} among those of its size"
        numbers.append((rank.mean, lambda value: number(value, ".0f"), "percentile", note))
    numbers += [
        (sum(seconds) if seconds else None, duration, "wall-clock time", names),
        (max(peaks, default=None), memory, "peak memory", "largest of the stages"),
    ]
    return tiles([(form(value), title, note) for value, form, title, note in numbers if value is not None])


def _cells(run: Run) -> str:
    genotype = run.genotype
    if genotype is None:
        return ""
    alphas = run.search.final_alphas if run.search is not None and run.search.genotype == genotype else None
    lines = "".join(
        f"<tr><td>{escape(name)}</td><td><code>"
        + escape("; ".join(f"{a}→{b} {operation}" for operation, a, b in cell.edges))
        + "</code></td></tr>"
        for name, cell in genotype.cells.items()
    )
    return section(
        "cells",
        "The cell" if len(genotype.cells) == 1 else "The cells",
        paragraph(
            "A cell is a small graph: numbered circles are feature maps, boxes are operations, and a circle is the sum "
            "of what arrives."
        )
        + drawing(draw_genotype(genotype, alphas))
        + drawing(draw_network(genotype, network_sizes(genotype, run.path)))
        + paragraph(
            "The network, from the image on the left to the classes on the right: every block is a cell, its height "
            "the resolution it works on. Below: number of cells of a kind, channels and resolution of their output."
        )
        + _percentile(genotype)
        + details(f"As text (digest {genotype.digest()})", f"<table>{lines}</table>"),
    )


def _percentile(genotype: Genotype) -> str:
    """Returns the predicted percentile and its limit, or why a cell of this skeleton has none."""
    found = percentile(genotype)
    if found is not None:
        return paragraph(f"Predicted percentile among random cells of the DARTS space: {found}. {limit()}")
    reason = why_no_percentile(genotype)
    return paragraph(f"The cell has no predicted percentile: {reason}.") if genotype.skeleton == DARTS else ""


def _search(search: Stage) -> str:
    if search.result.get("method") == RANDOM:
        return section(
            "search",
            "How the cell was found",
            paragraph("It was drawn at random from the search space, without a search."),
        )
    cards = [(sign.level, sign.name, sign.value, str(sign)) for sign in indicators(search)]
    return section("search", "Is the search healthy?", signs(cards) + stage_charts(search))


def _choices(search: Stage) -> str:
    found = choices(search)
    if not found:
        return ""
    rows = [
        [
            choice.cell,
            "\u00a0→\u00a0".join(map(str, choice.row.edge)),
            ", ".join(map(label, choice.chosen)) or DASH,
            label(choice.strongest),
            percent(choice.weight, 1),
            label(choice.runner_up) if choice.runner_up else DASH,
            percent(choice.weight - choice.margin if choice.runner_up else None, 1),
            percent(choice.margin, 1),
        ]
        for choice in found
    ]
    head = ["cell", "edge", "in the cell", "strongest", "weight", "runner-up", "weight", "margin"]
    state = health(search)
    why = "; the others lost against edges into the same node whose strongest operation had a larger weight"
    if state is not None and state.trained:
        why = ". The weights have narrowed the choice; short training has chosen edges and operations among it"
    return section(
        "choices",
        "Why these operations",
        paragraph(
            "For every edge of the search space: the operation with the largest softmax weight at the end, the "
            f"runner-up, and the margin between them. Edges in bold are part of the cell{why}."
        )
        + table(head, rows, numbers=(4, 6, 7), bold=[bool(choice.chosen) for choice in found]),
    )


def _evolution(search: Stage) -> str:
    epochs, alphas = list(search.alphas), list(search.alphas.values())
    panels = ""
    for name, rows in alphas[-1].cells.items() if alphas else ():
        edges = {
            f"{row.edge[0]} → {row.edge[1]}": {
                operation: [table.cells[name][i].weights[operation] for table in alphas] for operation in row.weights
            }
            for i, row in enumerate(rows)
        }
        chart = alpha_panels(f"alphas-{name}", epochs, edges)
        panels += f'<div class="wide">{figure(cell_title(name), chart, "")}</div>'
    note = "Softmax weight of each operation on each edge, epoch by epoch."
    return section("alphas", "Softmax weights during the search", paragraph(note) + panels) if panels else ""


def _errors(retrain: Stage) -> str:
    """Returns confusion matrix, accuracy of each class and the worst images; "" where nothing was evaluated."""
    classes, confusion = retrain.evaluation.get("classes"), retrain.evaluation.get("confusion")
    if not classes or not confusion:
        return ""
    names = [shorten(str(name), 60) for name in classes]
    chart = confusion_chart("confusion", confusion, names)
    matrix = figure("Confusion matrix", chart, "Rows: true class. Columns: prediction.")
    side = f"<div>{_by_class(confusion, names)}<h3 class=apart>Most frequent confusions</h3>"
    return section(
        "errors", "Errors", grid(f"{matrix}{side}{_confusions(confusion, names)}</div>") + _worst_images(retrain)
    )


def _by_class(confusion: list[list[int]], names: list[str]) -> str:
    ranked = sorted((row[i] / sum(row), i) for i, row in enumerate(confusion) if sum(row))
    bars = "".join(
        f"<tr><td>{breakable(names[i])}</td><td class=bar><span style='width:{100 * value:.1f}%'></span></td>"
        f"<td class=number>{percent(value, 1)}</td><td class=number>{sum(confusion[i]):,}</td></tr>"
        for value, i in ranked[:SHOWN_CLASSES]
    )
    left_out = len(ranked) - SHOWN_CLASSES
    head = "<tr><th>class</th><th>accuracy, worst first</th><th></th><th class=number>images</th></tr>"
    more = paragraph(f"The {left_out} best classes are left out.") if left_out > 0 else ""
    return f"<table class=bars>{head}{bars}</table>{more}"


def _confusions(confusion: list[list[int]], names: list[str], most: int = 5) -> str:
    wrong = [(-value, i, j) for i, row in enumerate(confusion) for j, value in enumerate(row) if i != j and value]
    pairs = [(f"{names[i]} predicted as {names[j]}", f"{-value:,} times") for value, i, j in sorted(wrong)[:most]]
    return definition_list(pairs) if pairs else paragraph("No image was misclassified.")


def _worst_images(retrain: Stage) -> str:
    shown = picture(retrain.path / WORST_FILE, "misclassified test images")
    legend = paragraph("First line: the true class. Second line: the predicted class and its probability.")
    return f"<h3 class=apart>Test images with the most confident wrong predictions</h3>{shown}{legend}" if shown else ""
