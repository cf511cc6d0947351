"""The whole network as a strip: every part a block whose height is the resolution, with sizes below."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

from nas_moreau.architecture.spaces.genotype import Genotype
from nas_moreau.architecture.spaces.skeletons import resolutions
from nas_moreau.drawing.cell import outline
from nas_moreau.drawing.operation_style import text_width
from nas_moreau.drawing.scene import Path, Scene, Text
from nas_moreau.drawing.scene_svg import paint_svg

_MARGIN, _GAP, _PORT, _TALLEST = 24.0, 7.0, (78.0, 44.0), 104.0
_NARROW, _BLOCK, _FEW = 4.0, 20.0, 22  # widths of a block; more cells than `_FEW` get narrower ones
_LOOKS = {"stem": ("plate", "#5b6472"), "cell": ("box", "#0072b2"), "block": ("narrowing", "#9a4fb5")}
_REDUCING = ("narrowing", "#d55e00")  # a cell of stride 2


class Sizes(NamedTuple):
    """The sizes of a network.

    Attributes:
        channels: Channels of the first cell's nodes.
        layers: Number of cells, in the unit of the skeleton.
        image: Channels, height and width of the images.
        classes: Number of classes; None if it is not known.
        auxiliary: Whether the network has an auxiliary head.
    """

    channels: int
    layers: int
    image: tuple[int, int, int] = (3, 32, 32)
    classes: int | None = None
    auxiliary: bool = False


def network_line(genotype: Genotype, sizes: Sizes) -> str:
    """Returns the network in one line: image, parts with their channels and resolution, classes."""
    texts = [f"image {_times(*sizes.image)}"]
    for part, count in _groups(_parts(genotype, sizes)):
        texts.append(f"{_counted(part, count)} {_times(part.channels, part.height, part.width)}")
    return " -> ".join([*texts, "classes" if sizes.classes is None else f"{sizes.classes} classes"])


def draw_network(genotype: Genotype, sizes: Sizes) -> str:
    """Returns the strip as SVG."""
    scene = Scene(title="The network as a strip of cells")
    add_network(scene, genotype, sizes)
    return paint_svg(scene)


def add_network(scene: Scene, genotype: Genotype, sizes: Sizes) -> None:
    """Draws the strip below the present parts of `scene`."""
    parts = _parts(genotype, sizes)
    top = scene.height + (0 if scene.height else _MARGIN)
    scene.parts.append(Text(_MARGIN, top + 8, "network", 16, "title", "start"))
    left = _MARGIN + text_width("network", 16) + 14
    note = f"{sizes.layers} {genotype.skeleton.layers_unit}, {sizes.channels} channels"
    note += f", {genotype.inputs} inputs a cell" if genotype.inputs > 1 else ""
    scene.parts.append(Text(left, top + 9, note, 12, "faint", "start"))
    middle = top + (56 if sizes.auxiliary else 32) + _TALLEST / 2
    shown = _BLOCK if len(parts) <= _FEW else max(_NARROW, _BLOCK * _FEW / len(parts))
    x = _port(scene, _MARGIN, middle, "image", _times(*sizes.image))
    auxiliary = genotype.skeleton.auxiliary_place
    after = auxiliary(sizes.layers) + 1 if sizes.auxiliary and auxiliary is not None else None
    smallest = min(part.height * part.width for part in parts)
    place = 0
    for part, count in _groups(parts):
        lines = [_counted(part, count), f"{part.channels} channels", _times(part.height, part.width)]
        need = max(text_width(line, 11) for line in lines) + 10
        width = count * shown + (count - 1) * _GAP
        start = x + max(_GAP, (need - width) / 2)
        shape, colour = _REDUCING if part.kind == "cell" and part.stride > 1 else _LOOKS[part.kind]
        height = min(_TALLEST, 26 + 12 * math.log2(part.height * part.width / smallest))
        for i in range(count):
            scene.parts.append(Path("line", [("M", x, middle), ("L", start, middle)]))
            corners = outline(shape if shown > 12 else "plate", start + shown / 2, middle, shown, height)
            title = f"{_counted(part, 1)}: {', '.join(lines[1:])}"
            scene.parts.append(Path("operation", corners, colour, 1.8, (), title))
            if place + i == after:
                above = [("M", start + shown / 2, top + 46), ("L", start + shown / 2, middle - height / 2)]
                scene.parts.append(Path("line", above))
                scene.parts.append(Text(start + shown / 2, top + 36, "auxiliary head", 11, "faint"))
            x, start = start + shown, start + shown + _GAP
        place += count
        centre = x - width / 2
        for i, line in enumerate(lines):
            role = "faint" if i else "label"
            scene.parts.append(Text(centre, middle + _TALLEST / 2 + 18 + 15 * i, line, 11, role))
        end = max(x, centre + need / 2)
        scene.parts.append(Path("line", [("M", x, middle), ("L", end, middle)]))
        x = end
    scene.parts.append(Path("line", [("M", x, middle), ("L", x + _GAP, middle)]))
    x = _port(scene, x + _GAP, middle, "classes", "pool, linear" if sizes.classes is None else f"{sizes.classes}")
    scene.width = max(scene.width, x + _MARGIN, left + text_width(note, 12) + _MARGIN)
    scene.height = middle + _TALLEST / 2 + 48 + _MARGIN


def _port(scene: Scene, left: float, middle: float, name: str, note: str) -> float:
    """Draws the input or the output of the network; returns its right end."""
    width, height = max(_PORT[0], text_width(note, 10) + 12), _PORT[1]
    scene.parts.append(Path("port", outline("box", left + width / 2, middle, width, height), title=f"{name}: {note}"))
    scene.parts.append(Text(left + width / 2, middle - 8, name, 13))
    scene.parts.append(Text(left + width / 2, middle + 10, note, 10, "faint"))
    return left + width


class _Block(NamedTuple):
    """A part of the network and its output."""

    name: str
    kind: str
    channels: int
    height: int
    width: int
    stride: int


def _parts(genotype: Genotype, sizes: Sizes) -> list[_Block]:
    parts = genotype.network_parts(sizes.channels, sizes.layers)
    outputs = resolutions(parts, sizes.image[1:])
    return [_Block(part.name, part.kind, part.outputs, *size, part.stride) for part, size in zip(parts, outputs)]


def _groups(parts: list[_Block]) -> list[tuple[_Block, int]]:
    return [(part, len(list(alike))) for part, alike in itertools.groupby(parts)]


def _counted(part: _Block, count: int) -> str:
    name = f"{part.name} block" if part.kind == "block" else part.name
    return name if count == 1 else f"{count} cells" if name == "cell" else f"{count} {name}"


def _times(*numbers: int) -> str:
    return "×".join(map(str, numbers))
