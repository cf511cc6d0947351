"""Paints a scene as SVG that follows the reader's light or dark colour scheme."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from nas_moreau.drawing.scene import DARK, LIGHT, VEIL, Path, Scene, Text


def _style(colours: Mapping[str, str]) -> str:
    c = colours
    return (
        f".nm-ground{{fill:{c['ground']}}}.nm-halo{{stroke:{c['ground']}}}"
        f".nm-line{{stroke:{c['line']}}}.nm-state,.nm-port{{fill:{c['state']};stroke:{c['line']}}}"
        f".nm-label,.nm-title{{fill:{c['text']}}}.nm-faint{{fill:{c['faint']}}}"
    )


_STYLE = (
    "<style>.nm-cell text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;"
    "dominant-baseline:central}.nm-title{font-weight:600}.nm-halo,.nm-line,.nm-operation-line,.nm-sample-line{fill:none}"
    + _style(LIGHT)
    + "@media (prefers-color-scheme:dark){"
    + _style(DARK)
    + ".nm-operation,.nm-sample{fill-opacity:.3}"
    + ".nm-operation,.nm-operation-line,.nm-arrow,.nm-sample,.nm-sample-line{filter:brightness(1.35)}}"
    + "@media print{"
    + _style(LIGHT)
    + ".nm-cell path{filter:none}}</style>"
)


def paint_svg(scene: Scene) -> str:
    """Returns the scene as a complete SVG text, the same for the same scene."""
    width, height = _f(scene.width), _f(scene.height)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="nm-cell" role="img" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}"><title>{escape(scene.title)}</title>{_STYLE}',
        f'<rect class="nm-ground" width="{width}" height="{height}" rx="10"/>',
    ]
    lines += [_svg_text(part) if isinstance(part, Text) else _svg_path(part) for part in scene.parts]
    return "\n".join([*lines, "</svg>\n"])


def _svg_text(part: Text) -> str:
    anchor = f' text-anchor="{part.anchor}"' if part.anchor != "start" else ""
    return (
        f'<text class="nm-{part.role}" x="{_f(part.x)}" y="{_f(part.y)}" font-size="{_f(part.size)}"{anchor}>'
        f"{escape(part.text)}</text>"
    )


def _svg_path(part: Path) -> str:
    d = " ".join(command[0] + ",".join(_f(number) for number in command[1:]) for command in part.commands)
    attributes = ""
    if part.role in ("operation", "sample"):
        attributes = f' fill="{part.colour}" fill-opacity="{VEIL}" stroke="{part.colour}"'
    elif part.role == "arrow":
        attributes = f' fill="{part.colour}"'
    elif part.colour:
        attributes = f' stroke="{part.colour}"'
    if part.role != "arrow":
        attributes += f' stroke-width="{_f(part.width)}"'
    if part.dash:
        attributes += f' stroke-dasharray="{" ".join(map(_f, part.dash))}"'
    tail = f"><title>{escape(part.title)}</title></path>" if part.title else "/>"
    return f'<path class="nm-{part.role}" d="{d}"{attributes}{tail}'


def _f(number: float) -> str:
    return f"{number:.2f}".rstrip("0").rstrip(".")
