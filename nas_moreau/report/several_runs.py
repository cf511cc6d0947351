"""The report of several runs: what they reached, how far seeds scatter, how alike their cells are, what they cost."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from urllib.parse import quote

from nas_moreau.architecture.spaces.genotype import Genotype
from nas_moreau.architecture.spaces.percentile import SIZE, Percentile, limit, percentile
from nas_moreau.config import flatten
from nas_moreau.drawing.cell import draw_genotype
from nas_moreau.drawing.operation_style import label, shorten
from nas_moreau.errors import InputError
from nas_moreau.report.charts import Series, dot_chart
from nas_moreau.report.format import (
    DASH,
    cent,
    count,
    duration,
    mean_and_spread,
    memory,
    number,
    percent,
    ranges,
)
from nas_moreau.report.html import (
    definition_list,
    details,
    drawing,
    figure,
    grid,
    header,
    page,
    paragraph,
    section,
    table,
)
from nas_moreau.report.significance import ranking
from nas_moreau.runs.atomic import write_atomic
from nas_moreau.runs.columns import CHARTS, COLUMNS, FIGURES, final_figures
from nas_moreau.runs.history import Run, Stage, read_run

SHOWN_CELLS = 12
"""Cells that are drawn; the others are in the table alone."""
LONGEST_NAME = 24
"""Letters of settings in the name of a group."""
OWN_KEYS = ("seed", "logging", "checkpoint", "genotype", "against_random")
"""Keys of a configuration in which runs of one group may differ."""


@dataclass
class Group:
    """Runs of one configuration that differ by their seeds alone.

    Attributes:
        name: What sets it apart from the other groups.
        settings: Flat configuration without `OWN_KEYS`; of a retraining alone also its cell.
        runs: The runs.
    """

    name: str
    settings: dict[str, str]
    runs: list[Run] = field(default_factory=list)

    @property
    def distinct(self) -> list[Run]:
        """The first run of each seed: another one of the same seed and settings is the same run, done again."""
        return list({run.seed: run for run in reversed(self.runs)}.values())[::-1]


def write_several_runs(run_paths: Sequence[str | os.PathLike[str]], target: str | os.PathLike[str]) -> Path:
    """Writes the report of several runs as one HTML file and returns its path.

    Args:
        run_paths: Folders of runs, each as for `write_report`; at least two.
        target: The file; reports of the runs are linked from it.

    Raises:
        InputError: A folder holds no run, a file in it is damaged, or a folder is given twice.
    """
    paths = [Path(path) for path in run_paths]
    for first, second in itertools.combinations(paths, 2):
        if first.resolve() == second.resolve():
            raise InputError(f"The run {first} is given twice.", "Give every run once.")
    target = Path(target)
    if not target.parent.is_dir():
        raise InputError(f"There is no folder {target.parent}.", "Make it, or choose another file with --output.")
    if target.is_dir():
        raise InputError(f"{target} is a folder.", "Choose a file with --output.")
    write_atomic(target, render([read_run(path) for path in paths], target.parent).encode("utf-8", "replace"))
    return target


def render(runs: Sequence[Run], folder: Path) -> str:
    """Returns the HTML of the report.

    Args:
        runs: The runs.
        folder: Where the page will be, for the links.
    """
    groups = group(runs)
    parts = [_header(groups), _figures(groups), _every_run(groups, folder), _percentiles(groups), _cells(groups)]
    parts += [_operations(groups), _cost(groups), _differences(groups), _reading_guide()]
    return page(f"{len(runs)} runs", parts)


def group(runs: Sequence[Run]) -> list[Group]:
    """Returns the runs in groups of one configuration, named by what sets each group apart from the others."""
    groups: list[Group] = []
    for run in runs:
        settings = _settings(run)
        found = next((group for group in groups if group.settings == settings), None)
        if found is None:
            groups.append(found := Group("", settings))
        found.runs.append(run)
    named = [key for key in _differing(groups) if key != "search.method"]
    methods = [_method(found.runs[0]) for found in groups]
    texts = [", ".join(f"{key.split('.')[-1]} {found.settings.get(key, DASH)}" for key in named) for found in groups]
    for i, found in enumerate(groups):
        if len(set(methods)) == len(groups):
            found.name = methods[i]
        elif max(map(len, texts)) <= LONGEST_NAME and len(set(zip(methods, texts))) == len(groups):
            found.name = f"{methods[i]}, {texts[i]}"
        else:  # too long for a name: see the table of settings
            found.name = f"{methods[i]}, group {i + 1}"
    return groups


def _settings(run: Run) -> dict[str, str]:
    kept = {key: value for key, value in run.source.config.items() if key not in OWN_KEYS}
    settings = {key: str(value) for key, value in flatten(kept).items()}
    if run.search is None and run.genotype is not None:
        settings["cell"] = run.genotype.digest()
    return settings


def _differing(groups: Sequence[Group]) -> list[str]:
    """Returns the keys of the settings that are not the same in all groups."""
    keys = dict.fromkeys(key for found in groups for key in found.settings)
    return [key for key in keys if len({found.settings.get(key) for found in groups}) > 1]


def _method(run: Run) -> str:
    if run.search is None:
        return "retraining"
    planned = (run.search.config.get("search") or {}).get("method", "search")
    return str(run.search.result.get("method", planned))


def figures(found: Group, key: str) -> list[float]:
    """Returns a final figure of the runs of a group that have it, one for each seed."""
    values = (_figure(run, key) for run in found.distinct)
    return [value for value in values if value is not None]


def _figure(run: Run, key: str) -> float | None:
    """Returns a final figure of a run: of its results, or else the last epoch's of a finished stage."""
    if key == "test_accuracy":
        return run.test_accuracy
    for stage in run.stages:
        found = stage.number(key)
        if found is None and stage.finished:
            found = stage.last(key)
        if found is not None:
            return found
    return None


def _value(value: float, as_percent: bool) -> str:
    return percent(value) if as_percent else number(value, ".4g")


def _spread(values: Sequence[float], as_percent: bool = True) -> str:
    if as_percent:
        return mean_and_spread(values)
    return number(mean(values), ".4g") + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")


def _header(groups: Sequence[Group]) -> str:
    runs = [run for found in groups for run in found.runs]
    seeds = sorted({run.seed for run in runs if isinstance(run.seed, int)})
    data = sorted({found.settings.get("data.name", "?") for found in groups})
    spaces = sorted({found.settings.get("space", "?") for found in groups})
    facts = [
        f"space {', '.join(spaces)}",
        f"data {', '.join(data)}",
        f"seed{'s' * (len(seeds) != 1)} {ranges(seeds) or '?'}",
    ]
    return header("report", f"{len(runs)} runs", facts, outcome(groups))


def outcome(groups: Sequence[Group]) -> str:
    """Returns in a few sentences what the runs reached, whether groups differ, and how many cells collapsed."""
    key = next((key for key in FIGURES if any(figures(found, key) for found in groups)), None)
    if key is None:
        return "None of these runs has an accuracy yet."
    title = final_figures()[key]
    known = {found.name: values for found in groups if (values := figures(found, key))}
    found = ranking(title[0].lower() + title[1:], known)
    runs = [run for group in groups for run in group.runs]
    if collapsed := sum(run.search is not None and run.search.verdict == "collapsed" for run in runs):
        found.append(f"The cell has collapsed in {collapsed} of {len(runs)} runs.")
    if repeated := sum(len(found.runs) - len(found.distinct) for found in groups):
        found.append(f"{repeated} of the runs {'repeats' if repeated == 1 else 'repeat'} seed and settings of another.")
    if unfinished := sum(not all(stage.finished for stage in run.stages) for run in runs):
        found.append(f"{unfinished} of the runs {'is' if unfinished == 1 else 'are'} not finished.")
    return " ".join(found)


def _figures(groups: Sequence[Group]) -> str:
    charts, rows = "", []
    for key, title in final_figures().items():
        series = [(found.name, values) for found in groups if (values := figures(found, key))]
        chart = CHARTS[COLUMNS[key].chart]
        dots = [Series(*pair) for pair in series]
        charts += figure(title, dot_chart(key, dots, [], chart.unit, percent=chart.percent), "")
        for name, values in series:
            ends = [_value(end, chart.percent) for end in (min(values), max(values))]
            rows.append([name, title, str(len(values)), _spread(values, chart.percent), *ends])
    if not rows:
        return ""
    note = "A dot is a seed; the diamond is the mean, its bars one sample standard deviation."
    head = ["runs", "figure", "n", "mean ± std", "min", "max"]
    return section("figures", "Accuracies", paragraph(note) + grid(charts) + table(head, rows, numbers=range(2, 6)))


def _every_run(groups: Sequence[Group], folder: Path) -> str:
    rows, links = [], []
    for found in groups:
        for run in found.runs:
            row = [run.path.resolve().name, found.name, str(run.seed)]
            row += [cent(_figure(run, key)) for key in FIGURES]
            row.append(count(run.retrain.number("parameters") if run.retrain is not None else None))
            row.append(number(_percentile(run), ".0f"))
            row.append((run.search.verdict if run.search is not None else None) or DASH)
            row.append(run.genotype.digest() if run.genotype is not None else DASH)
            rows.append(row)
            report = run.path / "report.html"
            links.append(quote(os.path.relpath(report, folder).replace(os.sep, "/")) if report.exists() else None)
    head = [
        "run",
        "settings",
        "seed",
        "test %",
        "supernet, held out %",
        "one-hot, held out %",
        "parameters",
        "percentile",
        "verdict",
        "cell",
    ]
    note = paragraph("The name of a run leads to its own report.") if any(links) else ""
    return section("runs", "Every run", note + table(head, rows, numbers=range(2, 8), links=links))


def _percentile(run: Run) -> float | None:
    """Returns the predicted percentile of a run's cell, the mean of both models; None if it has none."""
    found = percentile(run.genotype) if run.genotype is not None else None
    return None if found is None else found.mean


def _millions(ranks: Sequence[Percentile]) -> str:
    return number(mean(rank.parameters for rank in ranks) / 1e6, ".1f")


def _percentiles(groups: Sequence[Group]) -> str:
    """Returns the predicted percentiles of the cells of each group; "" where no cell has one."""
    series, rows = [], []
    for found in groups:
        every = [percentile(run.genotype) for run in found.distinct if run.genotype is not None]
        ranks = [rank for rank in every if rank is not None]
        if ranks:
            means = [rank.mean for rank in ranks]
            series.append(Series(found.name, means))
            texts = [_spread(means, as_percent=False), number(min(means), ".0f"), number(max(means), ".0f")]
            texts += [number(mean(values), ".0f") for values in zip(*((r.ridge, r.trees) for r in ranks))]
            of_size = [rank.of_size for rank in ranks if rank.of_size is not None]
            texts += [_spread(of_size, as_percent=False) if of_size else DASH, _millions(ranks)]
            rows.append([found.name, str(len(ranks)), *texts, str(len(every) - len(ranks))])
    if not rows:
        return ""
    chart = dot_chart("percentile", series, [("random", 50.0)], "percentile", percent=False)
    head = ["runs", "n", "mean ± std", "min", "max", "ridge", "trees", "of its size", "M parameters", "no percentile"]
    text = paragraph(f"{limit()} {SIZE} Collapsed cells have none.")
    inside = text + figure("", chart, "") + table(head, rows, numbers=range(1, len(head)))
    return section("percentile", "Predicted percentile among random cells", inside)


def _cells(groups: Sequence[Group]) -> str:
    by_digest: dict[str, list[tuple[Group, Run, Genotype]]] = {}
    for found in groups:
        for run in found.runs:
            if run.genotype is not None:
                by_digest.setdefault(run.genotype.digest(), []).append((found, run, run.genotype))
    if not by_digest:
        return ""
    shown = ""
    for digest, alike in list(by_digest.items())[:SHOWN_CELLS]:
        _, run, genotype = alike[0]
        names = ", ".join(f"{shorten(found.name, 60)}, seed {other.seed}" for found, other, _ in alike)
        own: Stage | None = run.search if len(alike) == 1 else None
        alphas = own.final_alphas if own is not None and own.genotype == genotype else None
        shown += details(f"{digest}: {names}", drawing(draw_genotype(genotype, alphas)))
    left_out = len(by_digest) - SHOWN_CELLS
    more = paragraph(f"{left_out} more cells are not drawn.") if left_out > 0 else ""
    return section("cells", "The cells", paragraph(agreement(groups)) + shown + more)


def agreement(groups: Sequence[Group]) -> str:
    """Returns in a sentence how many different cells there are, and what share of their edges two of a group share."""
    cells = [[run.genotype for run in found.runs if run.genotype is not None] for found in groups]
    number_of = sum(map(len, cells))
    different = len({cell.digest() for own in cells for cell in own})
    text = f"{number_of} run{'s' * (number_of != 1)} found {different} different cell{'s' if different > 1 else ''}."
    by_seed = [[run.genotype for run in found.distinct if run.genotype is not None] for found in groups]
    pairs = [pair for own in by_seed for pair in itertools.combinations(own, 2)]
    if pairs:
        alike = percent(mean(_shared(*pair) for pair in pairs), 0)
        text += f" Two runs that differ by the seed alone have, on average, {alike} of their edges in common."
    return text


def _shared(first: Genotype, second: Genotype) -> float:
    """Returns the share of edges that both have with the same operation."""
    edges = [Counter((name, *edge) for name, cell in g.cells.items() for edge in cell.edges) for g in (first, second)]
    return sum((edges[0] & edges[1]).values()) / max(1, *(sum(count.values()) for count in edges))


def _operations(groups: Sequence[Group]) -> str:
    """Returns the table of how often each operation is in the cells."""
    counts: dict[str, Counter[str]] = {found.name: Counter() for found in groups}
    for found in groups:
        for run in found.distinct:
            for cell in run.genotype.cells.values() if run.genotype is not None else ():
                counts[found.name].update(operation for operation, _, _ in cell.edges)
    operations = sorted({operation for own in counts.values() for operation in own})
    if not operations:
        return ""
    rows = [
        [label(operation), *(percent(own[operation] / max(1, own.total()), 0) for own in counts.values())]
        for operation in operations
    ]
    head = ["operation", *counts]
    text = "Share of each operation among the edges of the found cells."
    return section(
        "operations", "Operations of the cells", paragraph(text) + table(head, rows, numbers=range(1, len(head)))
    )


def _cost(groups: Sequence[Group]) -> str:
    rows = []
    for found in groups:
        for name in ("search", "retrain"):
            stages = [stage for run in found.runs for stage in run.stages if stage.name == name]
            seconds = [value for stage in stages if (value := stage.number("wall_seconds")) is not None]
            peaks = [value for stage in stages if (value := stage.number("peak_memory_bytes"))]
            if seconds:
                times = [duration(mean(seconds)), duration(sum(seconds))]
                rows.append([found.name, name, str(len(seconds)), *times, memory(max(peaks, default=None))])
    head = ["runs", "stage", "n", "mean time", "total", "peak memory"]
    return section("cost", "Cost", table(head, rows, numbers=range(2, 6))) if rows else ""


def _differences(groups: Sequence[Group]) -> str:
    rows = [[key, *(found.settings.get(key, DASH) for found in groups)] for key in _differing(groups)]
    if not rows:
        return section("settings", "Settings", paragraph("All runs have the same settings except for the seed."))
    return section("settings", "Settings that differ", table(["setting", *(found.name for found in groups)], rows))


def _reading_guide() -> str:
    pairs = [
        ("mean ± std", "mean and sample standard deviation over the runs of a row, which differ by their seeds alone"),
        ("test", "accuracy of the retrained network on the test images; nothing was chosen by it"),
        ("held out", "accuracy of the search's supernet on images that neither level of the search saw"),
        (
            "one-hot",
            "the same supernet with the derived cell instead of the mixture; the difference is the discretisation gap",
        ),
        ("verdict", "collapsed: more than half of a normal cell's edges carry skip_connect, none or noise"),
    ]
    return section("guide", "How to read this", definition_list(pairs))
