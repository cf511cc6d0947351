"""Charts of the report as inline SVG by matplotlib, in the colours of the page around them."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nas_moreau.drawing.operation_style import label, look, shorten

# placeholders that are replaced by the page's colours, so that charts follow light and dark
_INK, _GRID = "#010203", "#040506"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#c98a00", "#9a4fb5", "#b3224f")
_DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)), (0, (3, 1.5)), (0, (9, 3)))
_POINTS = 160
"""Largest number of points of a line."""


class Series(NamedTuple):
    """A line of a chart: its name and a value (or None) for every epoch."""

    name: str
    values: Sequence[float | None]


def line_chart(
    key: str,
    places: Sequence[float],
    series: Sequence[Series],
    ylabel: str,
    log: bool = False,
    percent: bool = False,
    xlabel: str = "epoch",
) -> str:
    """Returns lines over epochs or steps as SVG; "" if no series has a number.

    Args:
        key: Of the chart, unique in its page.
        places: The epoch or step of each value, as the axis counts them.
        series: The lines; each has its colour and dash pattern, in this order.
        ylabel: Quantity and unit.
        log: Logarithmic axis (values that are not positive are left out).
        percent: Show fractions as per cent.
        xlabel: What the places are.
    """
    columns = _columns_of_legend([name for name, _ in series])
    above = 0.08 + 0.16 * math.ceil(len(series) / columns) * (len(series) > 1)
    figure, axes = _figure(4.4, 2.3 + above, margins=(0.62, 0.42, 0.1, above))
    drawn = 0
    for i, (name, values) in enumerate(series):
        points = [
            (place, 100 * value if percent else value)
            for place, value in zip(places, values)
            if value is not None and (not log or value > 0)
        ]
        if not points:
            continue
        points = _thin(points)
        alone = {"marker": "o", "markersize": 3.5} if len(points) <= 12 else {}
        axes.plot(
            *zip(*points), color=COLOURS[i % 6], linestyle=_DASHES[i % 6], linewidth=1.4, label=_plain(name), **alone
        )
        drawn += 1
    if not drawn:
        return ""
    if log:
        _logarithmic(axes)
    else:
        _not_magnified(axes)
    axes.set_ylabel(ylabel)
    axes.set_xlabel(xlabel)
    _whole_epochs(axes)
    if drawn > 1:
        axes.legend(
            frameon=False, fontsize=7, labelcolor=_INK, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1.0)
        )
    return _svg(figure, key)


def _columns_of_legend(names: Sequence[str]) -> int:
    """Returns the number of names, each after a piece of its line, that fit side by side above a line chart."""
    longest = max((len(name) for name in names), default=1)
    return max(1, min(4, len(names), int(3.7 / (0.062 * longest + 0.48))))


def alpha_panels(key: str, epochs: Sequence[int], edges: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Returns a small panel for each edge or decision with the softmax weight of every option over the epochs."""
    shown = list(edges.items())[:30]
    columns = min(5, len(shown))
    rows = math.ceil(len(shown) / columns)
    operations = list(dict.fromkeys(name for _, found in shown for name in found))
    legend = 0.32 + 0.16 * math.ceil(len(operations) / 5)
    height = 1.15 * rows + legend + 0.2
    figure, _ = _figure(7.6, height, axes=False)
    top = max(max(weights) for _, found in shown for weights in found.values())
    low = min(min(weights) for _, found in shown for weights in found.values())
    low = 0.98 * low if low > 0.5 * top else 0.0  # from zero, unless that would merge all lines
    ends = set()
    for i, (edge, found) in enumerate(shown):
        axes = figure.add_subplot(rows, columns, i + 1)
        _dress(axes)
        for name, weights in found.items():
            points = _thin([(epoch + 1, weight) for epoch, weight in zip(epochs, weights)])
            style = look(name)
            dash: Any = (0, tuple(length / 2.2 for length in style.dash)) if style.dash else "solid"
            alone = {"marker": "o", "markersize": 2} if len(points) == 1 else {}
            axes.plot(
                *zip(*points), color=style.colour, linestyle=dash, linewidth=1.1, label=_plain(label(name)), **alone
            )
        axes.set_ylim(low, 1.02 * top)
        axes.set_title(_plain(shorten(edge, 24)), fontsize=7.5, pad=2, color=_INK)
        axes.tick_params(labelsize=6)
        _whole_epochs(axes, 3)
        if i % columns:
            axes.tick_params(labelleft=False)
        if i + columns < len(shown):
            axes.tick_params(labelbottom=False)
        for line in axes.get_lines():
            ends.add((line.get_label(), line))
    handles: dict[str, Any] = {}
    for name, line in sorted(ends, key=lambda pair: pair[0]):
        handles.setdefault(name, line)
    figure.legend(
        handles.values(),
        handles.keys(),
        frameon=False,
        fontsize=7,
        labelcolor=_INK,
        ncols=min(5, len(handles)),
        loc="upper center",
    )
    figure.subplots_adjust(
        left=0.06, right=0.99, bottom=0.24 / height, top=1 - legend / height, wspace=0.1, hspace=0.38
    )
    return _svg(figure, key)


def confusion_chart(key: str, confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Returns the confusion matrix (rows: true class, columns: prediction), shaded by the share of the row."""
    n = len(classes)
    size = 4.6 if n <= 20 else 6.4
    room = 0.062 * max(len(shorten(name, 24)) for name in classes) if n <= 20 else 0.2  # inches for their names
    left, bottom = 0.4 + room, 0.45 + 0.72 * room
    figure, axes = _figure(size, size - left + bottom, margins=(left, bottom, 0.1, 0.1))
    shares = [[value / max(1, sum(row)) for value in row] for row in confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    axes.grid(False)
    if n <= 20:
        names = [_plain(shorten(name, 24)) for name in classes]
        axes.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(n), names)
    if n <= 12:
        for i, row in enumerate(confusion):
            for j, value in enumerate(row):
                if value:
                    colour = "#ffffff" if shares[i][j] > 0.55 else "#10243a"
                    axes.text(j, i, f"{value}", ha="center", va="center", fontsize=6.5, color=colour)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return _svg(figure, key)


def dot_chart(
    key: str, groups: Sequence[Series], lines: Sequence[tuple[str, float]], ylabel: str, percent: bool = True
) -> str:
    """Returns a column of dots for each group, with its mean and sample standard deviation; "" without any dot.

    Args:
        key: As for `line_chart`.
        groups: Names and values.
        lines: Names and heights of dashed lines across.
        ylabel: Quantity and unit.
        percent: Show fractions as per cent.
    """
    scale = 100 if percent else 1
    shown = [(name, [scale * value for value in values if value is not None]) for name, values in groups]
    shown = [(name, values) for name, values in shown if values]
    if not shown:
        return ""
    longest = max(len(name) for name, _ in shown)
    flat = 0.062 * longest < 0.9  # the names fit side by side
    room = 0.3 if flat else 0.25 + 0.05 * max(len(shorten(name, 40)) for name, _ in shown)
    margins = (0.62, room, 1.7 if lines else 0.1, 0.1)
    figure, axes = _figure(max(4.8, 0.9 * len(shown) + 2.2), 3.0 + room, margins=margins)
    for i, (name, values) in enumerate(shown):
        colour, middle = COLOURS[i % 6], math.fsum(values) / len(values)
        spread = math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0
        places = [i - 0.18 + 0.1 * (j % 3 - 1) for j in range(len(values))]
        axes.plot(places, values, "o", color=colour, markersize=4, alpha=0.75, label=_plain(name))
        axes.errorbar([i + 0.18], [middle], [spread], fmt="D", color=colour, markersize=4.5, capsize=4, linewidth=1.2)
    for i, (name, height) in enumerate(lines):
        axes.axhline(scale * height, color=_INK, linewidth=0.9, linestyle=_DASHES[1 + i % 5], alpha=0.7)
        axes.annotate(
            _plain(name),
            (1, scale * height),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=6.5,
            color=_INK,
            va="center",
        )
    turned = {} if flat else {"rotation": 30, "ha": "right"}
    axes.set_xticks(range(len(shown)), [_plain(name) for name, _ in shown], **turned)
    axes.set_xlim(-0.6, len(shown) - 0.4)
    axes.set_ylabel(ylabel)
    return _svg(figure, key)


def cost_chart(key: str, curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]], ylabel: str) -> str:
    """Returns accuracy (per cent) against seconds, runs as thin steps, their mean by epoch thick; "" without any."""
    figure, axes = _figure(6.4, 3.2, margins=(0.62, 0.42, 0.1, 0.24 + 0.16 * math.ceil(len(curves) / 4)))
    drawn = 0
    for i, (name, runs) in enumerate(curves.items()):
        colour, dash = COLOURS[i % 6], _DASHES[i % 6]
        for points in runs if len(runs) > 1 else ():
            axes.step(*_columns(points), where="post", color=colour, linewidth=0.7, alpha=0.35)
        mean = [[math.fsum(numbers) / len(runs) for numbers in zip(*points)] for points in zip(*runs)]
        if mean:
            axes.plot(*_columns(mean), color=colour, linestyle=dash, linewidth=1.8, marker=".", label=_plain(name))
            drawn += 1
    if not drawn:
        return ""
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds of the search")
    axes.set_ylabel(ylabel)
    axes.legend(frameon=False, fontsize=7, labelcolor=_INK, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0))
    return _svg(figure, key)


Points = Sequence[tuple[float, float]]


def front_chart(key: str, curves: Mapping[str, tuple[Points, Points]], xlabel: str, ylabel: str) -> str:
    """Returns points of several kinds in a plane, those that nothing beats joined by a line.

    Args:
        key: Of the chart, unique in its page.
        curves: Kind -> the joined points in their order, and all points.
        xlabel, ylabel: Quantities and units.
    """
    figure, axes = _figure(6.4, 3.2, margins=(0.62, 0.42, 0.1, 0.4))
    for i, (name, (joined, every)) in enumerate(curves.items()):
        style = {"color": COLOURS[i % 6], "label": _plain(name)}
        axes.plot(*zip(*joined), linestyle=_DASHES[i % 6], linewidth=1.6, marker="o", markersize=4, **style)
        axes.plot(*zip(*every), linestyle="none", marker="o", markersize=3, alpha=0.5, color=style["color"])
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.legend(frameon=False, fontsize=7, labelcolor=_INK, ncols=3, loc="lower left", bbox_to_anchor=(0, 1.0))
    return _svg(figure, key)


def _columns(points: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    return [seconds for seconds, _ in points], [100 * accuracy for _, accuracy in points]


def _figure(
    width: float, height: float, axes: bool = True, margins: tuple[float, float, float, float] = (0.62, 0.42, 0.1, 0.08)
) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # loaded only when a report is made

    figure = Figure(figsize=(width, height))
    figure.patch.set_alpha(0)
    if not axes:
        return figure, None
    left, bottom, right, top = margins
    made = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height))
    _dress(made)
    return figure, made


def _dress(axes: Any) -> None:
    axes.patch.set_alpha(0)
    axes.grid(True, color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_GRID)
    axes.tick_params(which="both", colors=_INK, labelsize=7, length=2.5, color=_GRID)
    axes.xaxis.label.set(color=_INK, fontsize=7.5)
    axes.yaxis.label.set(color=_INK, fontsize=7.5)


def _logarithmic(axes: Any) -> None:
    """Makes the axis logarithmic, with at least three plain numbers, however short it is."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    axis = axes.yaxis
    axis.set_major_locator(
        LogLocator(subs=(1.0,) if decades > 3 else (1.0, 2.0, 5.0)) if decades > 1 else MaxNLocator(5)
    )
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _not_magnified(axes: Any) -> None:
    """Widens an axis of nearly equal values, on which a change of a hundredth would fill the height."""
    low, high = axes.dataLim.intervaly
    middle, least = (low + high) / 2, 0.05 * max(abs(low), abs(high))
    if high - low < least:
        axes.set_ylim(middle - least / 2, middle + least / 2)


def _whole_epochs(axes: Any, most: int = 8) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    low, high = axes.get_xlim()
    if high - low < 1:  # a single epoch
        axes.set_xlim(low - 0.5, high + 0.5)


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Returns at most `_POINTS` of the points, including the last one."""
    step = math.ceil(len(points) / _POINTS)
    return points[::-1][::step][::-1]


def _plain(text: str) -> str:
    """Returns a text that matplotlib shows literally: no formulas, and no leading "_", which would hide it."""
    return shorten(text, 40).replace("$", r"\$").lstrip("_") or "?"


def _svg(figure: Any, key: str) -> str:
    import matplotlib

    picture = io.StringIO()
    prefix = "c-" + re.sub(r"[^A-Za-z0-9_-]", lambda match: f"_{ord(match[0]):x}_", key)
    # text as text: smaller, searchable, in the page's font; the salt makes ids the same every time
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": f"chart {key}", "font.family": "DejaVu Sans"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the browser has the glyphs
        figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = picture.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg class="chart" role="img" viewBox="\1">', svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', svg).replace("xlink:href", "href")
    svg = svg.replace("url(#", f"url(#{prefix}-")
    return svg.replace(_INK, "currentColor").replace(_GRID, "var(--grid)")
