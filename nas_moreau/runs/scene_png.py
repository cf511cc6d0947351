"""Paints a scene as PNG by matplotlib, for places that show no SVG (TensorBoard, slides)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nas_moreau.runs.scene import LIGHT, VEIL, Path, Scene, Text


def paint_png(scene: Scene, scale: float = 2.0) -> bytes:
    """Returns the scene as PNG bytes with `scale` pixels a unit and a white ground."""
    picture = io.BytesIO()
    with _known_glyphs():
        _figure(scene, scale).savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def paint_pixels(scene: Scene, scale: float = 2.0) -> Any:
    """Returns the same picture as an array, uint8 (height, width, 3)."""
    import numpy as np

    figure = _figure(scene, scale)
    with _known_glyphs():
        figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


@contextmanager
def _known_glyphs() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # such a name shows boxes
        yield


def _figure(scene: Scene, scale: float) -> Any:
    # Figure and Agg canvas without pyplot: no global state, no display, nothing to close.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dots = 72.0  # at 72 dots an inch matplotlib's points are units of the scene
    figure = Figure(figsize=(scene.width / dots, scene.height / dots), dpi=dots * scale, facecolor=LIGHT["ground"])
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, scene.width)
    axes.set_ylim(scene.height, 0)
    axes.axis("off")
    for order, part in enumerate(scene.parts):
        if isinstance(part, Text):
            _text(axes, part, order)
        else:
            _path(axes, part, order)
    return figure


def _text(axes: Any, part: Text, order: int) -> None:
    axes.text(
        part.x,
        part.y,
        part.text.replace("$", r"\$"),  # no formulas
        fontsize=0.94 * part.size,  # DejaVu Sans runs wider than the fonts of browsers
        color=LIGHT["faint"] if part.role == "faint" else LIGHT["text"],
        weight="bold" if part.role == "title" else "normal",
        ha="center" if part.anchor == "middle" else "left",
        va="center_baseline" if part.anchor == "middle" else "center",
        zorder=order,
    )


def _path(axes: Any, part: Path, order: int) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    points: list[tuple[float, float]] = []
    codes: list[Any] = []
    for command in part.commands:
        numbers = command[1:] or (0.0, 0.0)
        pairs = list(zip(numbers[::2], numbers[1::2]))
        points += pairs
        codes += {
            "M": [Outline.MOVETO], "L": [Outline.LINETO], "C": [Outline.CURVE4] * 3, "Z": [Outline.CLOSEPOLY],
        }[command[0]]  # fmt: skip
    fill: Any = "none"
    line: Any = part.colour or LIGHT["line"]
    if part.role in ("operation", "sample"):
        fill = (part.colour, VEIL)
    elif part.role in ("state", "port"):
        fill = LIGHT["state"]
    elif part.role == "arrow":
        fill, line = part.colour, "none"
    elif part.role == "halo":
        line = LIGHT["ground"]
    style: Any = (0, part.dash) if part.dash else "solid"
    if part.dash:  # matplotlib counts dashes in line widths
        style = (0, tuple(length / part.width for length in part.dash))
    axes.add_patch(
        PathPatch(
            Outline(points, codes), facecolor=fill, edgecolor=line, linewidth=part.width, linestyle=style,
            capstyle="butt", zorder=order, snap=False,
        )
    )  # fmt: skip
