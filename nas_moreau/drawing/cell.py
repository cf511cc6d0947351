"""Drawings of genotypes: SVG and PNG, painted from one scene without an external program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nas_moreau.architecture.spaces.alpha_table import AlphaTable
from nas_moreau.architecture.spaces.genotype import Cell, Genotype, register_drawing
from nas_moreau.drawing.cell_layout import Item, Layout, Link, lay_out
from nas_moreau.drawing.operation_style import LABEL_SIZE, cell_title, label, look, shorten, text_width
from nas_moreau.drawing.scene import Path, Scene, Text
from nas_moreau.drawing.scene_svg import paint_svg

Edge = tuple[str, int, int]
"""Operation, from, to."""

_MARGIN, _TITLE, _CELL_GAP, _LEGEND_ROW = 24.0, 34.0, 30.0, 30.0


@register_drawing
def draw_genotype(genotype: Genotype, alphas: AlphaTable | None = None) -> str:
    """Returns an SVG of all cells of a genotype with a legend; it follows the reader's light or dark colour scheme.

    Args:
        genotype: The genotype.
        alphas: The softmax weights of its search. They set the width of the lines and are written on the operations.
    """
    return paint_svg(genotype_scene(genotype, alphas))


def draw_png(genotype: Genotype, alphas: AlphaTable | None = None, scale: float = 2.0) -> bytes:
    """Returns the drawing of `draw_genotype` as a PNG with a white ground.

    Args:
        genotype: The genotype.
        alphas: As for `draw_genotype`.
        scale: Pixels per unit of the drawing.
    """
    from nas_moreau.drawing.scene_png import paint_png

    return paint_png(genotype_scene(genotype, alphas), scale)


def draw_pixels(genotype: Genotype, alphas: AlphaTable | None = None, scale: float = 2.0) -> Any:
    """Returns the picture of `draw_png` as an array, uint8 (height, width, 3)."""
    from nas_moreau.drawing.scene_png import paint_pixels

    return paint_pixels(genotype_scene(genotype, alphas), scale)


def genotype_files(genotype: Genotype, alphas: AlphaTable | None = None, png: bool = False) -> dict[str, bytes]:
    """Returns the contents of genotype.json, genotype.svg and, with `png`, genotype.png, by file name.

    Args:
        genotype: The genotype.
        alphas: The softmax weights of its search, for the drawing.
        png: Also draw it as pixels, which takes longer.
    """
    files = {
        "genotype.json": (genotype.to_json() + "\n").encode(),
        "genotype.svg": draw_genotype(genotype, alphas).encode(),
    }
    return files | ({"genotype.png": draw_png(genotype, alphas)} if png else {})


def genotype_scene(genotype: Genotype, alphas: AlphaTable | None = None) -> Scene:
    """Returns the parts of the drawing: the cells below each other, then the legend."""
    scene = Scene()
    y = _MARGIN
    for name, cell in genotype.cells.items():
        weights = _edge_weights(alphas, name, cell.edges)
        labels = [_edge_label(edge, weights) for edge in cell.edges]
        widths = [max(64.0, text_width(text, LABEL_SIZE) + 24) for text in labels]
        layout = lay_out(cell.edges, genotype.inputs, cell.concat, widths)
        note = f"{len(cell.edges)} operations"
        if genotype.skeleton.halves(name):
            note += ", halves height and width"
        heading = cell_title(shorten(name, 40))
        scene.parts.append(Text(_MARGIN, y + 8, heading, 16, "title", "start"))
        left = _MARGIN + text_width(heading, 16) + 14
        scene.parts.append(Text(left, y + 9, note, 12, "faint", "start"))
        y += _TITLE
        _draw_cell(scene, layout, _Drawn(cell, genotype.inputs, labels, weights), _MARGIN, y)
        scene.width = max(scene.width, layout.width + 2 * _MARGIN, left + text_width(note, 12) + _MARGIN)
        y += layout.height + _CELL_GAP
    scene.height = _draw_legend(scene, genotype, alphas is not None, y)
    return scene


def _edge_weights(alphas: AlphaTable | None, name: str, edges: Sequence[Edge]) -> dict[Edge, float]:
    """Returns the softmax weights of the edges of a cell."""
    if alphas is None or name not in alphas.cells:
        return {}
    rows = {row.edge: row.weights for row in alphas.cells[name]}
    return {(op, a, b): rows[a, b][op] for op, a, b in edges if op in rows.get((a, b), {})}


class _Drawn(NamedTuple):
    """A cell, its number of inputs, and the label and softmax weight of every edge."""

    cell: Cell
    inputs: int
    labels: Sequence[str]
    weights: Mapping[Edge, float]


def _edge_label(edge: Edge, weights: Mapping[Edge, float]) -> str:
    share = weights.get(edge)
    return label(edge[0]) + ("" if share is None else f" · {100 * share:.0f} %")


def _draw_cell(scene: Scene, layout: Layout, drawn: _Drawn, left: float, top: float) -> None:
    for item in layout.items:
        item.x += left
        item.y += top
    for link in layout.links:
        link.arrival += top
    through = [
        Path("line", [("M", i.x - i.width / 2, i.y), ("L", i.x + i.width / 2, i.y)])
        for i in layout.items
        if i.kind == "pass"
    ]
    # lines that part or meet are painted together, so that halos cut only what is crossed
    fans: dict[int, list[Link]] = {}
    for link in layout.links:
        fans.setdefault(id(link.end if link.start.kind == "operation" else link.start), []).append(link)
    for fan in fans.values():
        painted: list[Path | Text] = []
        for link in fan:
            if link.start.kind != "operation":
                painted.append(Path("line", _curve(link)))
                continue
            edge = drawn.cell.edges[link.start.edge]
            style = look(edge[0])
            width = 1.8 + 5.0 * drawn.weights.get(edge, 0.04)
            painted.append(Path("operation-line", _curve(link, 7.0), style.colour, width, style.dash))
            tip, y, half = link.end.x - link.end.width / 2, link.arrival, 3.6 + width / 4
            arrow: list[tuple[Any, ...]] = [("M", tip, y), ("L", tip - 8, y - half), ("L", tip - 8, y + half), ("Z",)]
            painted.append(Path("arrow", arrow, style.colour))
        scene.parts += [
            Path("halo", part.commands, width=part.width + 4)
            for part in painted
            if isinstance(part, Path) and part.role != "arrow"
        ]
        scene.parts += painted
    scene.parts += through
    for item in layout.items:
        _draw_box(scene, item, drawn)


def _curve(link: Link, short: float = 0.0) -> list[tuple[Any, ...]]:
    """Returns a line over a gap, level at both ends; `short` leaves space for the head of an arrow."""
    x0, y0 = link.start.x + link.start.width / 2, link.start.y
    x1, y1 = link.end.x - link.end.width / 2 - short, link.arrival
    middle = (x0 + x1) / 2
    return [("M", x0, y0), ("C", middle, y0, middle, y1, x1, y1)]


def _draw_box(scene: Scene, item: Item, drawn: _Drawn) -> None:
    x, y, w, h = item.x, item.y, item.width, item.height
    cell, inputs = drawn.cell, drawn.inputs
    if item.kind == "operation":
        operation, a, b = cell.edges[item.edge]
        style = look(operation)
        title = f"{shorten(operation, 200)}, from {a} to {b}"
        dash = style.dash if operation == "none" else ()
        scene.parts.append(Path("operation", outline(style.shape, x, y, w, h), style.colour, 1.8, dash, title))
        scene.parts.append(Text(x, y, drawn.labels[item.edge], LABEL_SIZE))
    elif item.kind == "state" and item.state >= inputs:
        scene.parts.append(Path("state", outline("capsule", x, y, w, h), title=f"state {item.state}"))
        scene.parts.append(Text(x, y, str(item.state), 14))
    elif item.kind == "state":
        back = inputs - item.state
        name = "input" if inputs == 1 else "previous cell" if back == 1 else f"{back} cells back"
        _draw_port(scene, item, str(item.state), name)
    elif item.kind == "output":
        made = "concat " if len(cell.concat) > 1 else "state "
        _draw_port(scene, item, "output", shorten(made + " ".join(map(str, cell.concat)), 16))


def _draw_port(scene: Scene, item: Item, name: str, note: str) -> None:
    scene.parts.append(Path("port", outline("box", item.x, item.y, item.width, item.height), title=f"{name}: {note}"))
    scene.parts.append(Text(item.x, item.y - 8, name, 13))
    size = min(10.0, 10.0 * (item.width - 6) / text_width(note, 10))
    scene.parts.append(Text(item.x, item.y + 10, note, size, "faint"))


def outline(shape: str, x: float, y: float, w: float, h: float) -> list[tuple[Any, ...]]:
    """Returns the outline of a shape that is centred at (x, y) and fills (w, h)."""
    l, r, t, b = x - w / 2, x + w / 2, y - h / 2, y + h / 2
    if shape in ("box", "capsule"):
        c = h / 2 if shape == "capsule" else 5.0
        k = 0.4477 * c  # a cubic this far from the corner is a quarter of a circle
        return [
            *(("M", l + c, t), ("L", r - c, t), ("C", r - k, t, r, t + k, r, t + c)),
            *(("L", r, b - c), ("C", r, b - k, r - k, b, r - c, b)),
            *(("L", l + c, b), ("C", l + k, b, l, b - k, l, b - c)),
            *(("L", l, t + c), ("C", l, t + k, l + k, t, l + c, t), ("Z",)),
        ]
    d = 9.0
    corners = {
        "plate": [(l, t), (r, t), (r, b), (l, b)],
        "hexagon": [(l + d, t), (r - d, t), (r, y), (r - d, b), (l + d, b), (l, y)],
        "octagon": [(l + d, t), (r - d, t), (r, t + d), (r, b - d), (r - d, b), (l + d, b), (l, b - d), (l, t + d)],
        "narrowing": [(l, t), (r - d, t + 3), (r, y), (r - d, b - 3), (l, b)],
        "widening": [(l, y), (l + d, t + 3), (r, t), (r, b), (l + d, b - 3)],
    }[shape]
    return [("M", *corners[0]), *(("L", *corner) for corner in corners[1:]), ("Z",)]


def _draw_legend(scene: Scene, genotype: Genotype, weighted: bool, top: float) -> float:
    """Draws the legend of shapes and lines; returns the height of the whole drawing."""
    names = dict.fromkeys(edge[0] for cell in genotype.cells.values() for edge in cell.edges)
    scene.width = max(scene.width, 420.0)
    x, y = _MARGIN, top
    for operation in sorted(names):
        style, text = look(operation), shorten(operation, 28)
        need = 84 + text_width(text, 12)
        if x > _MARGIN and x + need > scene.width - _MARGIN:
            x, y = _MARGIN, y + _LEGEND_ROW
        dash = style.dash if operation == "none" else ()
        scene.parts.append(Path("sample", outline(style.shape, x + 14, y, 28, 18), style.colour, 1.8, dash))
        scene.parts.append(Path("sample-line", [("M", x + 28, y), ("L", x + 56, y)], style.colour, 2.2, style.dash))
        scene.parts.append(Text(x + 63, y, text, 12, "label", "start"))
        x += need + 8
    if weighted:
        note = "Line width and per cent: softmax weight of the operation on its edge."
        scene.parts.append(Text(_MARGIN, y + 26, note, 12, "faint", "start"))
        scene.width = max(scene.width, 2 * _MARGIN + text_width(note, 12))
        y += 26
    return y + _MARGIN
