"""Drawings: no label meets another, no line passes through a box, for every published cell and for random ones."""

from __future__ import annotations

import itertools
import random
import re
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import pytest

from nas_moreau.architecture import AlphaTable, Genotype
from nas_moreau.architecture.spaces.alpha_table import EdgeWeights
from nas_moreau.architecture.spaces.zoo import published_cell, published_names
from nas_moreau.cli.inspect import describe, draw
from nas_moreau.drawing.cell import draw_genotype, draw_png
from nas_moreau.drawing.network import Sizes, draw_network, network_line
from nas_moreau.drawing.operation_style import label, look
from nas_moreau.errors import InputError

SVG = "{http://www.w3.org/2000/svg}"
Box = tuple[float, float, float, float]  # left, top, right, bottom


def genotype(cells: dict, inputs: int = 2) -> SimpleNamespace:
    """A genotype that no rule has checked."""
    return SimpleNamespace(
        cells={name: SimpleNamespace(edges=edges, concat=concat) for name, (edges, concat) in cells.items()},
        inputs=inputs,
        skeleton=SimpleNamespace(halves=lambda name: name == "reduce"),
    )


def random_genotype(seed: int) -> SimpleNamespace:
    """A cell of up to 7 states with up to 3 operations each, some of them twice on one edge."""
    draws = random.Random(seed)
    inputs, nodes = draws.choice([1, 2, 3]), draws.randint(1, 7)
    operations = ["sep_conv_3x3", "skip_connect", "none", "max_pool_3x3", "my_very_long_operation_name_9x9"]
    edges = [
        (draws.choice(operations), draws.randrange(state), state)
        for state in range(inputs, inputs + nodes)
        for _ in range(draws.randint(1, 3))
    ]
    return genotype({"normal": (edges, tuple(range(inputs, inputs + nodes)))}, inputs)


def points(d: str) -> list[tuple[float, float]]:
    """Corners of straight pieces and 40 points of every curve of an SVG path made of M, L, C, Z."""
    found: list[tuple[float, float]] = []
    for letter, numbers in re.findall(r"([MLCZ])([-\d.,]*)", d):
        values = [float(n) for n in numbers.split(",") if n]
        if letter in "ML":
            found.append((values[0], values[1]))
        elif letter == "C":
            p = [found[-1], *zip(values[::2], values[1::2])]
            for i in range(1, 41):
                t = i / 40
                weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
                found.append(tuple(sum(w * q[k] for w, q in zip(weights, p)) for k in (0, 1)))
    return found


def dense(corners: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points at most one unit apart on the way along the corners."""
    found = corners[:1]
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        count = max(1, int(abs(x1 - x0) + abs(y1 - y0)) + 1)
        found += [(x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count) for i in range(1, count + 1)]
    return found


def bounds(corners: list[tuple[float, float]]) -> Box:
    xs, ys = zip(*corners)
    return min(xs), min(ys), max(xs), max(ys)


def text_box(element: ElementTree.Element) -> Box:
    """The room of a text in a wide font: DejaVu Sans takes .60 of its size a character on average, capitals more."""
    size, x, y = (float(element.attrib[name]) for name in ("font-size", "x", "y"))
    width = size * sum(0.36 if c in " .,il·" else 0.95 if c in "mwMW%@" else 0.61 for c in element.text or "")
    left = x - width / 2 if element.get("text-anchor") == "middle" else x
    return left, y - 0.5 * size, left + width, y + 0.5 * size


def meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def check_geometry(svg: str) -> None:
    root = ElementTree.fromstring(svg)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    texts = [text_box(element) for element in root.iter(SVG + "text")]
    boxes: list[Box] = []
    lines: list[list[tuple[float, float]]] = []
    for element in root.iter(SVG + "path"):
        role = element.attrib["class"].removeprefix("nm-")
        if role in ("operation", "state", "port"):
            boxes.append(bounds(points(element.attrib["d"])))
        elif role in ("line", "operation-line"):
            lines.append(dense(points(element.attrib["d"])))
    assert boxes and lines
    for a, b in itertools.combinations(texts, 2):
        assert not meet(a, b), "two labels overlap"
    for a, b in itertools.combinations(boxes, 2):
        assert not meet(a, b), "two boxes overlap"
    for left, top, right, bottom in [*texts, *boxes]:
        assert left >= 0 and top >= 0 and right <= width and bottom <= height, "something is outside the drawing"
    for text in texts:
        for box in boxes:
            inside = box[0] <= text[0] and text[2] <= box[2] and box[1] <= text[1] and text[3] <= box[3]
            assert inside or not meet(text, box), "a label sticks out of its box"
    for line in lines:
        for x, y in line:
            for left, top, right, bottom in boxes:
                # Half a unit: lines end on the border of the boxes that they connect.
                assert not (left + 0.5 < x < right - 0.5 and top + 0.5 < y < bottom - 0.5), "a line meets a box"


@pytest.mark.parametrize("name", published_names())
def test_published_cells_are_drawn_cleanly(name):
    check_geometry(draw_genotype(published_cell(name)))


@pytest.mark.parametrize("seed", range(25))
def test_random_cells_are_drawn_cleanly(seed):
    check_geometry(draw_genotype(random_genotype(seed)))


NAS_BENCH_201 = genotype(
    {
        "cell": (
            (
                ("nor_conv_3x3", 0, 1),
                ("skip_connect", 0, 2),
                ("none", 1, 2),
                ("nor_conv_1x1", 0, 3),
                ("avg_pool_3x3", 1, 3),
                ("nor_conv_3x3", 2, 3),
            ),
            (3,),
        )
    },
    inputs=1,
)


def test_a_cell_with_one_input_is_drawn_cleanly_and_completely():
    svg = draw_genotype(NAS_BENCH_201)
    check_geometry(svg)
    assert svg.count('class="nm-operation"') == 6 and svg.count('class="nm-state"') == 3


PARSED = Genotype.parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|")


@pytest.mark.parametrize(
    "name, sizes, blocks",
    [
        ("DARTS_V2", Sizes(36, 20, classes=10, auxiliary=True), 21),
        ("NASNet", Sizes(4, 1, (1, 28, 28), 47), 2),
        ("AmoebaNet", Sizes(44, 14, (3, 224, 224), 1000, True), 15),
        ("DARTS_V1", Sizes(16, 90), 91),
        ("", Sizes(16, 5), 18),
    ],
)
def test_networks_are_drawn_cleanly_with_a_block_for_every_part(name, sizes, blocks):
    svg = draw_network(published_cell(name) if name else PARSED, sizes)
    check_geometry(svg)
    assert svg.count('class="nm-operation"') == blocks
    assert svg.count("auxiliary head") == sizes.auxiliary


def test_a_network_in_one_line():
    assert network_line(published_cell("DARTS_V2"), Sizes(36, 20, classes=10)) == (
        "image 3×32×32 -> stem 108×32×32 -> 6 normal 144×32×32 -> reduce 288×16×16 -> 6 normal 288×16×16 -> "
        "reduce 576×8×8 -> 6 normal 576×8×8 -> 10 classes"
    )
    line = network_line(PARSED, Sizes(16, 2, (1, 15, 9)))
    assert line.endswith(
        "residual block 32×8×5 -> 2 cells 32×8×5 -> residual block 64×4×3 -> 2 cells 64×4×3 -> classes"
    )


def test_show_draws_cells_and_network_into_one_file(tmp_path):
    draw("DARTS_V2", tmp_path / "cell.svg")
    svg = (tmp_path / "cell.svg").read_text()
    check_geometry(svg)
    assert svg.count('class="nm-title"') == 3 and "6 normal" in svg
    draw(PARSED.to_json(), tmp_path / "cell.png")
    assert (tmp_path / "cell.png").read_bytes()[:4] == b"\x89PNG"
    assert "5 cells 16×32×32" in describe(PARSED.to_json())[0]
    for name, target in (("DARTS_V2", "cell.gif"), ("DARTS_V2", "none/cell.svg"), ("no_cell", "cell.svg")):
        with pytest.raises(InputError):
            draw(name, tmp_path / target)


def test_the_geometric_test_can_fail():
    svg = draw_genotype(NAS_BENCH_201)
    with pytest.raises(AssertionError, match="labels overlap"):
        check_geometry(svg.replace("</svg>", '<text class="nm-label" x="60" y="33" font-size="12">state</text></svg>'))
    with pytest.raises(AssertionError, match="a line meets a box"):
        check_geometry(svg.replace("</svg>", '<path class="nm-line" d="M0,130 L800,130"/></svg>'))
    with pytest.raises(AssertionError, match="a label sticks out"):
        check_geometry(svg.replace("none</text>", "none of these at all</text>", 1))


def test_weights_are_written_and_set_the_width_of_lines():
    cells = genotype({"normal": ([("skip_connect", 0, 2), ("sep_conv_3x3", 1, 2)], (2,))})
    rows = [{"sep_conv_3x3": 0.2, "skip_connect": 0.75}, {"sep_conv_3x3": 0.25, "skip_connect": 0.1}]
    alphas = AlphaTable({"normal": (EdgeWeights((0, 2), rows[0]), EdgeWeights((1, 2), rows[1]))})
    svg = draw_genotype(cells, alphas)
    check_geometry(svg)
    assert "skip · 75 %" in svg and "sep conv 3×3 · 25 %" in svg
    widths = [float(w) for w in re.findall(r'class="nm-operation-line"[^>]*stroke-width="([\d.]+)"', svg)]
    assert sorted(widths) == [3.05, 5.55]


def test_every_operation_of_a_cell_can_be_told_apart_without_colour():
    names = [
        "max_pool_3x3",
        "avg_pool_3x3",
        "skip_connect",
        "sep_conv_3x3",
        "sep_conv_5x5",
        "sep_conv_7x7",
        "dil_conv_3x3",
        "dil_conv_5x5",
        "conv_7x1_1x7",
        "none",
        "noise",
    ]
    assert len({(look(name).shape, look(name).dash) for name in names}) == len(names)
    assert len({label(name) for name in names}) == len(names)


def test_drawings_are_the_same_each_time_and_need_nothing_from_outside():
    one, two = draw_genotype(random_genotype(3)), draw_genotype(random_genotype(3))
    assert one == two
    assert "http" not in one.replace('xmlns="http://www.w3.org/2000/svg"', "") and "url(" not in one


def test_hostile_names_stay_text():
    name = '<script>alert(1)</script>&"\x00\ud800' + "x" * 300
    svg = draw_genotype(genotype({"<b>": ([(name, 0, 1), (name, 0, 2), ("🧨" * 40, 1, 2)], (2,))}, 1))
    check_geometry(svg)
    assert "<script" not in svg and "<b>" not in svg and "&lt;script&gt;" in svg
    svg.encode("utf-8")
    assert draw_png(genotype({"$x$": ([("🧨_$^{", 0, 1)], (1,))}, 1), scale=0.5)[:4] == b"\x89PNG"


def test_a_png_has_the_size_of_the_drawing():
    root = ElementTree.fromstring(draw_genotype(NAS_BENCH_201))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    png = draw_png(NAS_BENCH_201, scale=1.0)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert abs(int.from_bytes(png[16:20], "big") - width) <= 1 and abs(int.from_bytes(png[20:24], "big") - height) <= 1
    assert png == draw_png(NAS_BENCH_201, scale=1.0)
