"""Draws the choices in a module: a row for each decision, its options with their weights, the chosen one filled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas_moreau.drawing.operation_style import look, shorten, text_width
from nas_moreau.drawing.scene import Path, Scene, Text
from nas_moreau.drawing.scene_png import paint_pixels
from nas_moreau.drawing.scene_svg import paint_svg

_ROW, _BOX, _PAD, _SIZE = 54.0, 34.0, 16.0, 12.0
_LONGEST = 28
"""Characters of a name that are shown."""


def draw_choices(weights: Mapping[str, Mapping[str, float]], chosen: Mapping[str, str]) -> str:
    """Returns the drawing as SVG.

    Args:
        weights: Decision -> option -> softmax weight.
        chosen: Decision -> chosen option.
    """
    return paint_svg(choices_scene(weights, chosen))


def choices_pixels(weights: Mapping[str, Mapping[str, float]], chosen: Mapping[str, str]) -> Any:
    """Returns the drawing as a uint8 array (height, width, 3); the arguments are those of `draw_choices`."""
    return paint_pixels(choices_scene(weights, chosen), 1.0)


def choices_scene(weights: Mapping[str, Mapping[str, float]], chosen: Mapping[str, str]) -> Scene:
    """Returns the drawing before it is painted; the arguments are those of `draw_choices`."""
    scene = Scene(title="Choices in the module")
    left = _PAD + max(text_width(shorten(name, _LONGEST), _SIZE) for name in weights) + 16
    for number, (name, options) in enumerate(weights.items()):
        top = _PAD + number * _ROW
        middle = top + _BOX / 2
        scene.parts.append(Text(_PAD, middle, shorten(name, _LONGEST), _SIZE, "title", "start"))
        x = left
        for option, weight in options.items():
            x += _draw_option(scene, (x, top), option, weight, chosen=option == chosen[name]) + 10
        scene.width = max(scene.width, x + _PAD)
    scene.height = 2 * _PAD + len(weights) * _ROW + 6
    note = "filled: the chosen option; below each option its softmax weight"
    scene.parts.append(Text(_PAD, scene.height - _PAD, note, 11.0, "faint", "start"))
    scene.width = max(scene.width, 2 * _PAD + text_width(note, 11.0))
    return scene


def _draw_option(scene: Scene, place: tuple[float, float], option: str, weight: float, *, chosen: bool) -> float:
    """Draws an option with a bar as long as its weight below, and returns its width."""
    (x, y), text, style = place, shorten(option, _LONGEST), look(option)
    width = max(64.0, text_width(text, _SIZE) + 16)
    title = f"{option}: weight {weight:.3f}"
    role = "operation" if chosen else "line"
    scene.parts.append(Path(role, _box(x, y, width, 22), style.colour if chosen else "", 1.5, style.dash, title))
    scene.parts.append(Text(x + width / 2, y + 11, text, _SIZE))
    scene.parts.append(Path("operation-line", [("M", x, y + 27), ("L", x + width * weight, y + 27)], style.colour, 4.0))
    scene.parts.append(Text(x + width / 2, y + 37, f"{weight:.2f}", 10.0, "faint"))
    return width


def _box(x: float, y: float, width: float, height: float) -> list[tuple[Any, ...]]:
    return [("M", x, y), ("L", x + width, y), ("L", x + width, y + height), ("L", x, y + height), ("Z",)]
