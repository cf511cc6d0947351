"""The report of a search inside a module: the choices with their weights, all curves, everything to reproduce it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape

from nas_moreau.drawing.choices import draw_choices
from nas_moreau.report.charts import Series, alpha_panels, line_chart
from nas_moreau.report.format import DASH, count, duration, memory, number, percent
from nas_moreau.report.html import details, drawing, figure, grid, header, page, paragraph, section, table, tiles
from nas_moreau.report.indicators import GOOD, WATCH
from nas_moreau.report.record import command_of, configuration_section, cost_section, environment_section
from nas_moreau.runs.board import chart_group
from nas_moreau.runs.columns import charts_of
from nas_moreau.runs.history import Run, Stage
from nas_moreau.runs.plain_files import read_json

COSTS: dict[str, tuple[str, Callable[[float | None], str]]] = {
    "parameters": ("parameters", count),
    "macs": ("multiply-adds", count),
    "ms": ("predicted latency", lambda value: f"{number(value, '.3g')} ms"),
}


def render_module(search: Stage) -> str:
    """Returns the HTML of the report of a search inside a module."""
    name = search.path.resolve().name or "run"
    parts = [_header(search, name), _choices(search), _last_stage(search), _charts(search), _evolution(search)]
    run = Run(search.path, search, None)
    parts += [cost_section(run), _reproduce(search), environment_section(search.environment)]
    return page(f"{name} · report", [*parts, configuration_section(search.config)])


def _header(search: Stage, name: str) -> str:
    result, module = search.result, search.config.get("module") or {}
    facts = [f"module {module.get('class')}", f"loss {module.get('loss')}", f"seed {search.config.get('seed')}"]
    method = (search.config.get("search") or {}).get("method")
    facts = [str(method), *facts] if method else facts
    marks = [(f"search: {search.state}", GOOD if search.state == "finished" else WATCH)]
    verdict = str(result.get("verdict", ""))
    if verdict:
        state = verdict.split(":")[0]
        marks.append((f"choices: {state}", GOOD if state in ("decided", "trained") else WATCH))
    summary = f"{verdict[:1].upper()}{verdict[1:]}." if verdict else "The search is not finished."
    return header("report", name, facts, summary, _tiles(search), marks)


def _tiles(search: Stage) -> str:
    result = search.result
    numbers: list[tuple[float | None, Callable[[float | None], str], str, str]] = []
    for key, note in (("held_out", "all options, by their weights"), ("one_hot", "the chosen options alone")):
        for name, value in (result.get(key) or {}).items():
            numbers.append((value, lambda found: number(found, ".4g"), f"held-out {name}", note))
    for key, (title, form) in COSTS.items():
        numbers.append(((result.get("costs") or {}).get(key), form, title, "of the chosen module"))
    numbers += [
        (search.seconds, duration, "wall-clock time", "of the search"),
        (search.number("peak_memory_bytes"), memory, "peak memory", ""),
    ]
    return tiles([(form(value), title, note) for value, form, title, note in numbers if value is not None])


def choices_of(search: Stage) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Returns the weights (decision -> option -> softmax weight) and the chosen options of a search inside a module.

    Args:
        search: Its folder; while it is not finished, those of the last epoch.
    """
    weights = _weights(search)
    strongest = {name: max(options, key=lambda option: options[option]) for name, options in weights.items()}
    # choices.json is that of the last epoch, which keeps the limits
    chosen = search.result.get("choices") or (read_json(search.path / "choices.json") or {}).get("choices") or strongest
    return weights, {name: chosen[name] for name in weights}


def _weights(search: Stage) -> dict[str, dict[str, float]]:
    found = search.result.get("weights")
    if found:
        order = dict.fromkeys((search.result.get("places") or {}).values())
        return {name: dict(found[name]) for name in (order or found)}
    table = search.final_alphas
    return {name: dict(row.weights) for name, (row,) in table.cells.items()} if table is not None else {}


def _choices(search: Stage) -> str:
    weights, chosen = choices_of(search)
    if not weights:
        return ""
    places: dict[str, list[str]] = {}
    for place, name in (search.result.get("places") or {}).items():
        places.setdefault(name, []).append(place)
    rows = []
    for name, options in weights.items():
        first, second = sorted(options, key=lambda option: -options[option])[:2]
        rows.append(
            [
                name,
                ", ".join(places.get(name, [])) or DASH,
                chosen[name],
                percent(options[chosen[name]], 1),
                second if first == chosen[name] else first,
                percent(options[second] if first == chosen[name] else options[first], 1),
            ]
        )
    head = ["decision", "places", "chosen", "weight", "next", "weight"]
    limits = [f"{name} at most {value:g}" for name, value in (search.result.get("limits") or {}).items()]
    note = f" Chosen within limits: {', '.join(limits)}." if limits else ""
    return section(
        "choices",
        "The choices",
        drawing(draw_choices(weights, chosen))
        + paragraph(f"For every decision the chosen option, its softmax weight, and the strongest of the others.{note}")
        + table(head, rows, numbers=(3, 5)),
    )


def _last_stage(search: Stage) -> str:
    """Returns the candidates that were trained, the best of the last round first, and their losses by round."""
    stage = search.result.get("last_stage")
    if not stage:
        return ""
    rounds, losses = stage["rounds"], dict[str, dict[int, float | None]]()
    for place, entry in enumerate(rounds):
        for row in entry["candidates"]:
            losses.setdefault(_as_text(row["choices"]), {})[place] = row["loss"]
    first = _as_text(stage["first"])
    # each round is sorted by its losses: those that got further stand above
    order = list(dict.fromkeys(_as_text(row["choices"]) for entry in reversed(rounds) for row in entry["candidates"]))
    rows = [
        [f"{text} (by the weights)" if text == first else text]
        + [number(losses[text][k], ".4g") if k in losses[text] else DASH for k in range(len(rounds))]
        for text in order
    ]
    head = ["choices", *(f"{entry['steps']} steps" for entry in rounds)]
    note = (
        f"Each was trained from the weights that the module came with; the losses are means over {stage['samples']} "
        "samples of the choices, and have chosen: they do not estimate how good the module is."
    )
    return section("last-stage", "The last stage", paragraph(note) + table(head, rows, numbers=range(1, len(head))))


def _as_text(choices: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={option}" for name, option in choices.items())


def _charts(search: Stage) -> str:
    return section("search", "How the search went", stage_charts(search, "loss")) if search.metrics else ""


def stage_charts(stage: Stage, loss: str | None = None, axis: str = "epoch") -> str:
    """Returns a chart for each group of columns in the stage's metrics.csv; those of the method's theory are folded.

    Args:
        stage: The stage.
        loss: What losses are measured in, if not in nats.
        axis: The column that the numbers are shown over: "epoch", or "step" where a row is not an epoch.
    """
    first = 1 if axis == "epoch" else 0  # epochs are counted from 1 on the page, from 0 in the table
    places = [place + first for place in stage.metrics.get(axis, []) if place is not None]
    shown, theory = "", list[str]()
    for key, (chart, curves) in charts_of(stage.metrics).items():
        series = [Series(title, stage.metrics[name]) for name, title in curves.items()]
        if chart.may_be_zero and not any(value for line in series for value in line.values):
            continue
        of_a_loss = "nats" in chart.unit and "entropy of" not in chart.title.lower()
        unit = loss if loss is not None and of_a_loss else chart.unit
        svg = line_chart(f"{stage.name}-{key}", places, series, unit, log=chart.log, percent=chart.percent, xlabel=axis)
        if chart_group(key) == "theory":
            theory.append(figure(chart.title, svg, chart.note))
        else:
            shown += figure(chart.title, svg, chart.note)
    folded = details(f"Terms of the method: {len(theory)} charts", grid("".join(theory))) if theory else ""
    return grid(shown) + folded if shown or theory else paragraph("No epoch was finished.")


def _evolution(search: Stage) -> str:
    epochs, tables = list(search.alphas), list(search.alphas.values())
    if not tables:
        return ""
    panels = {
        name: {option: [found.cells[name][0].weights[option] for found in tables] for option in row.weights}
        for name, (row,) in tables[-1].cells.items()
    }
    chart = alpha_panels("alphas", epochs, panels)
    note = paragraph("Softmax weight of each option, epoch by epoch.")
    return section(
        "alphas", "Softmax weights during the search", note + f'<div class="wide">{figure("", chart, "")}</div>'
    )


def _reproduce(search: Stage) -> str:
    text = (
        "The same call of search_module with the same module, data, seed and number of threads gives the same bytes of "
        "alphas, weights and metrics on a CPU."
    )
    inside = command_of(search)
    unfinished = "" if search.finished else "<p>To continue, repeat it with <code>resume=True</code>.</p>"
    return section("reproduce", "Reproduce this run", inside + f"<p>{escape(text)}</p>" + unfinished)
