"""The report of several runs: what they reached, how far seeds scatter, how alike their cells are, what they cost."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from urllib.parse import quote

from nas_moreau.config import flatten
from nas_moreau.drawing.cell import draw_genotype
from nas_moreau.drawing.operation_style import label, shorten
from nas_moreau.errors import InputError
from nas_moreau.report.charts import Series, dot_chart
from nas_moreau.report.choices import kept_weights
from nas_moreau.report.html import definition_list, drawing, figure, page, section, table
from nas_moreau.report.indicators import cent, duration, memory, millions, percent, ranges, spread
from nas_moreau.runs.atomic import write_atomic
from nas_moreau.runs.columns import CHARTS, COLUMNS, FIGURES, final_figures
from nas_moreau.runs.history import Run, read_run

_SHOWN_CELLS = 12  # drawings in the page; the other cells are named in the table
_LONGEST = 24  # letters of settings in a name


@dataclass
class Group:
    """Runs that differ by their seeds alone. `settings`: flat configuration without what tells runs apart."""

    name: str
    settings: dict[str, str]
    runs: list[Run] = field(default_factory=list)


def write_comparison(run_paths: Sequence[str | os.PathLike[str]], target: str | os.PathLike[str]) -> Path:
    """Writes the comparison of runs as one HTML file and returns its path.

    Args:
        run_paths: Folders of runs, each as for `write_report`; at least two.
        target: The file; reports of the runs are linked from it.

    Raises:
        InputError: A folder holds no run, a file in it is damaged, or a folder is named twice.
    """
    paths = [Path(path) for path in run_paths]
    for first, second in itertools.combinations(paths, 2):
        if first.resolve() == second.resolve():
            raise InputError(f"The run {first} is named twice.", "Name every run once.")
    target = Path(target)
    if not target.parent.is_dir():
        raise InputError(f"There is no folder {target.parent}.", "Make it, or name another file with --output.")
    if target.is_dir():
        raise InputError(f"{target} is a folder.", "Name a file with --output.")
    write_atomic(target, render([read_run(path) for path in paths], target.parent).encode("utf-8", "replace"))
    return target


def render(runs: Sequence[Run], where: Path) -> str:
    """Returns the HTML of the comparison; `where` is the folder that it will lie in, for the links."""
    groups = group(runs)
    parts = [_header(groups), _figures(groups), _every_run(groups, where), _cells(groups), _choices(groups)]
    parts += [_cost(groups), _differences(groups), _words()]
    return page(f"{len(runs)} runs · nas_moreau comparison", [part for part in parts if part])


def group(runs: Sequence[Run]) -> list[Group]:
    """Returns the runs in groups of one configuration, named by what sets each group apart from the others."""
    groups: list[Group] = []
    for run in runs:
        settings = _settings(run)
        found = next((group for group in groups if group.settings == settings), None)
        if found is None:
            groups.append(found := Group("", settings))
        found.runs.append(run)
    keys = dict.fromkeys(key for found in groups for key in found.settings)
    differing = [key for key in keys if len({found.settings.get(key) for found in groups}) > 1]
    named = [key for key in differing if key != "search.method"]
    methods = [_method(found.runs[0]) for found in groups]
    told = [", ".join(f"{key.split('.')[-1]} {found.settings.get(key, '–')}" for key in named) for found in groups]
    for i, found in enumerate(groups):
        if len(set(methods)) == len(groups):
            found.name = methods[i]
        elif max(map(len, told)) <= _LONGEST and len(set(zip(methods, told))) == len(groups):
            found.name = f"{methods[i]}, {told[i]}"
        else:  # too much to say in a name: the table of settings tells them apart
            found.name = f"{methods[i]}, group {i + 1}"
    return groups


def _settings(run: Run) -> dict[str, str]:
    config = run.source.config
    told = {name: stage.genotype.digest() for name, stage in (("cell", run.retrain),)
            if stage is not None and run.search is None and stage.genotype is not None}  # fmt: skip
    kept = {key: value for key, value in config.items() if key not in ("seed", "logging", "checkpoint", "genotype")}
    return {key: str(value) for key, value in flatten(kept).items()} | told


def _method(run: Run) -> str:
    if run.search is None:
        return "retraining"
    asked = run.search.config.get("search")
    planned = asked.get("method", "search") if isinstance(asked, dict) else "search"
    return str(run.search.result.get("method", planned))


def figures(found: Group, key: str) -> list[float]:
    """Returns a figure (0..1) of the runs of a group that have it."""
    values = (_figure(run, key) for run in found.runs)
    return [value for value in values if value is not None]


def _figure(run: Run, key: str) -> float | None:
    """Returns a final figure of a run: of its results, or else the last epoch's of a finished stage."""
    if key == "test_accuracy":
        return run.test_accuracy
    values = (
        stage.last(key) if (found := stage.number(key)) is None and stage.finished else found for stage in run.stages
    )
    return next((value for value in values if value is not None), None)


def _spread(values: Sequence[float], percent: bool = True) -> str:
    deviation = stdev(values) if len(values) > 1 else None
    if percent:
        return spread(mean(values), deviation) + " %"
    return _value(mean(values), percent) + ("" if deviation is None else f" ± {deviation:.2g}")


def _value(value: float, percent: bool) -> str:
    return cent(value) + " %" if percent else f"{value:.4g}"


def _header(groups: Sequence[Group]) -> str:
    runs = [run for found in groups for run in found.runs]
    seeds = sorted({seed for run in runs if isinstance(seed := run.seed, int)})
    data = sorted({str(found.settings.get("data.name", "?")) for found in groups})
    spaces = sorted({str(found.settings.get("space", "?")) for found in groups})
    facts = f"space {', '.join(spaces)} · data {', '.join(data)} · seeds {ranges(seeds) or '?'}"
    return (
        f"<header><p class=eyebrow>nas_moreau comparison</p><h1>{len(runs)} runs</h1>"
        f"<p class=facts>{escape(facts)}</p><p class=verdict>{escape(verdict(groups))}</p></header>"
    )


def verdict(groups: Sequence[Group]) -> str:
    """Returns in a sentence or two what the runs reached and whether a difference between groups can be seen."""
    said = []
    key = next((key for key in FIGURES if any(figures(found, key) for found in groups)), None)
    if key is None:
        return "None of these runs has come to an accuracy yet."
    known = [(found, values) for found in groups if (values := figures(found, key))]
    reached = sorted(known, key=lambda pair: -mean(pair[1]))
    title = final_figures()[key]
    what = title[0].lower() + title[1:]
    if len(groups) == 1:
        found, values = reached[0]
        seeds = f"over {len(values)} seeds" if len(values) > 1 else "of one run"
        said.append(f"{found.name} reaches {_spread(values)} {what} ({seeds}, mean ± standard deviation).")
    else:
        best, values = reached[0]
        said.append(f"The best mean {what} is that of {best.name}: {_spread(values)} (n = {len(values)}).")
        if len(reached) > 1:
            other, theirs = reached[1]
            apart = 100 * (mean(values) - mean(theirs))
            if min(len(values), len(theirs)) == 1:
                apart_words = "with a single run on a side, chance is not ruled out."
            elif min(values) <= max(theirs):
                apart_words = "their ranges overlap, so more seeds are needed to tell them apart."
            else:
                apart_words = "their ranges do not overlap."
            said.append(f"{other.name} follows {apart:.2f} points behind; {apart_words}")
    unfinished = sum(not all(stage.finished for stage in run.stages) for found in groups for run in found.runs)
    if unfinished:
        said.append(f"{unfinished} of the runs {'is' if unfinished == 1 else 'are'} not finished.")
    return " ".join(said)


def _figures(groups: Sequence[Group]) -> str:
    charts, rows = "", []
    for key, title in final_figures().items():
        series = [(found.name, values) for found in groups if (values := figures(found, key))]
        chart = CHARTS[COLUMNS[key].chart]
        dots = [Series(*pair) for pair in series]
        charts += figure(title, dot_chart(key, dots, [], chart.unit, percent=chart.percent), "")
        rows += [
            [
                name,
                title,
                f"{len(values)}",
                _spread(values, chart.percent),
                *(_value(end, chart.percent) for end in (min(values), max(values))),
            ]
            for name, values in series
        ]
    if not rows:
        return ""
    note = "<p>A dot is a seed; the diamond is the mean, its bars one sample standard deviation.</p>"
    head = ["runs", "figure", "n", "mean ± std", "min", "max"]
    return section(
        "What they reach", f'{note}<div class="charts">{charts}</div>{table(head, rows, numbers=range(2, 6))}'
    )


def _every_run(groups: Sequence[Group], where: Path) -> str:
    rows, links = [], []
    for found in groups:
        for run in found.runs:
            parameters = run.retrain.number("parameters") if run.retrain is not None else None
            rows.append([
                run.path.resolve().name, found.name, str(run.seed), *(_cent(_figure(run, key)) for key in FIGURES),
                millions(parameters) if parameters is not None else "–",
                run.genotype.digest() if run.genotype is not None else "–",
            ])  # fmt: skip
            report = run.path / "report.html"
            links.append(quote(os.path.relpath(report, where).replace(os.sep, "/")) if report.exists() else None)
    head = ["run", "settings", "seed", "test", "supernet, held out", "one-hot, held out", "parameters", "cell"]
    note = "<p>Accuracies in per cent; each run's name leads to its own report.</p>" if any(links) else ""
    return section("Every run", note + table(head, rows, numbers=range(2, 7), links=links))


def _cent(value: float | None) -> str:
    return "–" if value is None else f"{cent(value)} %"


def _cells(groups: Sequence[Group]) -> str:
    by_digest: dict[str, list[tuple[Group, Run]]] = {}
    for found in groups:
        for run in found.runs:
            if run.genotype is not None:
                by_digest.setdefault(run.genotype.digest(), []).append((found, run))
    if not by_digest:
        return ""
    shown = ""
    for digest, alike in list(by_digest.items())[:_SHOWN_CELLS]:
        run = alike[0][1]
        names = ", ".join(f"{shorten(found.name, 60)}, seed {other.seed}" for found, other in alike)
        own = run.search is not None and run.search.genotype == run.genotype and len(alike) == 1
        svg = draw_genotype(run.genotype, kept_weights(run.search) if own and run.search is not None else None)
        summary = f"<summary>{escape(digest)}: {escape(names)}</summary>"
        shown += f"<details>{summary}{drawing(svg)}</details>"
    left_out = len(by_digest) - _SHOWN_CELLS
    more = f"<p>{left_out} more cells are not drawn.</p>" if left_out > 0 else ""
    return section("The cells", f"<p>{escape(agreement(groups))}</p>{shown}{more}")


def agreement(groups: Sequence[Group]) -> str:
    """Returns in words how many different cells there are, and what share of their edges two of a group share."""
    cells = [run.genotype for found in groups for run in found.runs if run.genotype is not None]
    different = len({cell.digest() for cell in cells})
    pairs = [
        (first.genotype, second.genotype)
        for found in groups
        for first, second in itertools.combinations([run for run in found.runs if run.genotype is not None], 2)
    ]
    said = f"{len(cells)} runs found {different} different cell{'s' if different > 1 else ''}."
    if pairs:
        alike = percent(mean(_shared(*pair) for pair in pairs), 0)
        said += f" Two runs that differ by the seed alone have, on average, {alike} of their edges in common."
    return said


def _shared(first: Any, second: Any) -> float:
    """Returns the share of edges that stand in both with the same operation."""
    edges = [Counter((name, *edge) for name, cell in g.cells.items() for edge in cell.edges) for g in (first, second)]
    return sum((edges[0] & edges[1]).values()) / max(1, *(sum(count.values()) for count in edges))


def _choices(groups: Sequence[Group]) -> str:
    """How often each operation stands in the cells."""
    counts = {
        found.name: Counter(
            edge[0] for run in found.runs if run.genotype is not None
            for cell in run.genotype.cells.values() for edge in cell.edges
        )
        for found in groups
    }  # fmt: skip
    operations = sorted({operation for count in counts.values() for operation in count})
    if not operations:
        return ""
    rows = [
        [label(operation), *(percent(count[operation] / max(1, sum(count.values())), 0) for count in counts.values())]
        for operation in operations
    ]
    head = ["operation", *counts]
    text = "<p>Share of each operation among the edges of the found cells.</p>"
    return section("What they chose", text + table(head, rows, numbers=range(1, len(head))))


def _cost(groups: Sequence[Group]) -> str:
    rows = []
    for found in groups:
        for name in ("search", "retrain"):
            stages = [stage for run in found.runs if (stage := getattr(run, name)) is not None]
            seconds = [value for stage in stages if (value := stage.number("wall_seconds")) is not None]
            peaks = [value for stage in stages if (value := stage.number("peak_memory_bytes"))]
            if seconds:
                rows.append([
                    found.name, name, f"{len(seconds)}", duration(mean(seconds)), duration(sum(seconds)),
                    memory(max(peaks)) if peaks else "–",
                ])  # fmt: skip
    if not rows:
        return ""
    head = ["runs", "stage", "n", "mean time", "all together", "peak memory"]
    return section("What it cost", table(head, rows, numbers=range(2, 6)))


def _differences(groups: Sequence[Group]) -> str:
    keys = dict.fromkeys(key for found in groups for key in found.settings)
    rows = [
        [key, *(found.settings.get(key, "–") for found in groups)]
        for key in keys
        if len({found.settings.get(key) for found in groups}) > 1
    ]
    if not rows:
        return section("Settings", "<p>But for the seed, all runs have the same settings.</p>")
    return section("Settings that differ", table(["setting", *(found.name for found in groups)], rows))


def _words() -> str:
    pairs = [
        ("mean ± std", "mean and sample standard deviation over the runs of a row, which differ by their seeds alone"),
        ("test", "accuracy on the test images of the network that was trained anew; nothing was chosen by it"),
        ("held out", "accuracy of the search's supernet on images that neither level of the search saw"),
        ("one-hot", "the same supernet with the derived cell in place of the mixture; what is lost is the "
                    "discretisation gap"),
    ]  # fmt: skip
    return section("How to read this", definition_list(pairs))
