"""Paints a scene as PNG by Pillow, for programs that show no SVG (TensorBoard, slides).

Lines and outlines are drawn larger and reduced, which smooths them; texts, which Pillow smooths itself, come on top.
Only the fonts are matplotlib's: painting by it takes several times as long, which matters in a search of short epochs.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path as FilePath
from typing import Any

from PIL import Image, ImageColor, ImageDraw, ImageFont

from nas_moreau.drawing.scene import LIGHT, VEIL, Path, Scene, Text

_FINER = 2
_CURVE = 16  # straight pieces of a curve

Point = tuple[float, float]


def paint_png(scene: Scene, scale: float = 2.0) -> bytes:
    """Returns the scene as PNG bytes with `scale` pixels per unit and a white ground."""
    picture = io.BytesIO()
    _paint(scene, scale).save(picture, "PNG", optimize=True)
    return picture.getvalue()


def paint_pixels(scene: Scene, scale: float = 2.0) -> Any:
    """Returns the same picture as an array, uint8 (height, width, 3)."""
    import numpy as np

    return np.asarray(_paint(scene, scale))


def _paint(scene: Scene, scale: float) -> Image.Image:
    size = round(scene.width * scale), round(scene.height * scale)
    fine = scale * _FINER
    picture = Image.new("RGB", (size[0] * _FINER, size[1] * _FINER), LIGHT["ground"])
    draw = ImageDraw.Draw(picture)
    for part in scene.parts:
        if isinstance(part, Path):
            _path(draw, part, fine)
    picture = picture.reduce(_FINER)
    draw = ImageDraw.Draw(picture)
    for part in scene.parts:
        if isinstance(part, Text):
            _text(draw, part, scale)
    return picture


@lru_cache(64)
def _font(size: float, bold: bool) -> ImageFont.FreeTypeFont:
    spec = find_spec("matplotlib")  # found, not loaded
    assert spec is not None and spec.origin is not None
    name = f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    place = FilePath(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name
    return ImageFont.truetype(str(place), size, layout_engine=ImageFont.Layout.BASIC)


def _text(draw: ImageDraw.ImageDraw, part: Text, scale: float) -> None:
    size = round(0.94 * part.size * scale, 1)  # DejaVu Sans runs wider than the fonts of browsers
    draw.text(
        (part.x * scale, part.y * scale),
        part.text,
        LIGHT["faint"] if part.role == "faint" else LIGHT["text"],
        _font(max(1.0, size), part.role == "title"),
        anchor="mm" if part.anchor == "middle" else "lm",
    )


def _path(draw: ImageDraw.ImageDraw, part: Path, scale: float) -> None:
    fill: str | tuple[int, ...] | None = None
    line = part.colour or LIGHT["line"]
    if part.role in ("operation", "sample"):
        fill = _veiled(part.colour)
    elif part.role in ("state", "port"):
        fill = LIGHT["state"]
    elif part.role == "arrow":
        fill = part.colour
    elif part.role == "halo":
        line = LIGHT["ground"]
    width = max(1, round(part.width * scale))
    for points in _corners(part, scale):
        if fill is not None:
            draw.polygon(points, fill)
        if part.role == "arrow":
            continue
        for piece in _dashes(points, [length * scale for length in part.dash]) if part.dash else [points]:
            draw.line(piece, line, width, joint="curve")


def _corners(part: Path, scale: float) -> Iterator[list[Point]]:
    """Yields the corners of every stroke in pixels, curves cut into straight pieces."""
    found: list[Point] = []
    for letter, *numbers in part.commands:
        if letter == "Z":
            # a little beyond the first corner, so that its joint is rounded too
            found += found[:2]
            continue
        points = [(x * scale, y * scale) for x, y in zip(numbers[::2], numbers[1::2])]
        if letter == "M":
            if found:
                yield found
            found = points
        elif letter == "L":
            found += points
        else:
            (x0, y0), (x1, y1), (x2, y2), (x3, y3) = found[-1], *points
            for i in range(1, _CURVE + 1):
                t = i / _CURVE
                a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
                found.append((a * x0 + b * x1 + c * x2 + d * x3, a * y0 + b * y1 + c * y2 + d * y3))
    if found:
        yield found


def _dashes(points: Sequence[Point], lengths: Sequence[float]) -> Iterator[list[Point]]:
    """Yields the drawn pieces of a line; `lengths` are those of dashes and gaps, alternating."""
    turn, left, piece = 0, lengths[0], [points[0]]
    for (x0, y0), (x1, y1) in pairwise(points):
        length, gone = math.hypot(x1 - x0, y1 - y0), 0.0
        while length - gone > left:
            gone += left
            corner = (x0 + (x1 - x0) * gone / length, y0 + (y1 - y0) * gone / length)
            if turn % 2 == 0:
                yield [*piece, corner]
            turn += 1
            left, piece = lengths[turn % len(lengths)], [corner]
        left -= length - gone
        piece.append((x1, y1))
    if turn % 2 == 0 and len(piece) > 1:
        yield piece


def _veiled(colour: str) -> tuple[int, ...]:
    """Returns a colour as a veil over the ground."""
    ground, full = ImageColor.getrgb(LIGHT["ground"]), ImageColor.getrgb(colour)
    return tuple(round(g + VEIL * (c - g)) for g, c in zip(ground, full))
