"""Heat maps of the softmax weights, for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nas_moreau.architecture.spaces.alpha_table import EdgeWeights
from nas_moreau.drawing.operation_style import label, shorten

_HIGH, _LOW, _WHITE = (0, 92, 158), (196, 84, 0), (255, 255, 255)  # distinct for colour-blind people
_OCTAVES = 2.0  # 4 times (or a quarter of) the uniform weight has the full colour
_CELL, _ROW, _PAD = 62, 24, 10  # pixels


def draw_heat_map(rows: Sequence[EdgeWeights], chosen: Iterable[tuple[str, int, int]]) -> np.ndarray:
    """Returns the softmax weights of a cell as a picture, uint8 (height, width, 3): blue above uniform, orange below.

    Args:
        rows: The edges of the cell. An operation that an edge does not have leaves a gap there.
        chosen: (operation, from, to) in the derived cell; they get a frame.
    """
    operations = list(dict.fromkeys(name for row in rows for name in row.weights))
    font, small = ImageFont.load_default(size=12), ImageFont.load_default(size=11)
    framed = set(chosen)
    heads = [shorten(label(name), 18).replace("×", "x") for name in operations]  # the font has no ×
    left, top = 48, 26 + math.ceil(max(small.getlength(head) for head in heads) * math.sin(math.pi / 4))
    reach = math.ceil(small.getlength(heads[-1]))  # the last slanted head leans out to the right
    note = "blue: above uniform, orange: below; framed: in the derived cell"
    width = max(left + _CELL * len(operations) + reach, math.ceil(small.getlength(note))) + 2 * _PAD
    picture = Image.new("RGB", (width, top + _ROW * len(rows) + 34), _WHITE)
    draw = ImageDraw.Draw(picture)
    for j, head in enumerate(heads):
        _slanted(picture, head, small, left + _CELL * j + _CELL // 2, top - 4)
    for i, row in enumerate(rows):
        y = top + _ROW * i
        draw.text((left - 8, y + _ROW / 2), f"{row.edge[0]} > {row.edge[1]}", "#1d2430", font, anchor="rm")
        for name, weight in row.weights.items():
            x = left + _CELL * operations.index(name)
            fill, ink = _colour(weight * len(row.weights))
            draw.rectangle((x + 1, y + 1, x + _CELL - 2, y + _ROW - 2), fill)
            if (name, *row.edge) in framed:
                draw.rectangle((x + 1, y + 1, x + _CELL - 2, y + _ROW - 2), None, "#1d2430", 2)
            draw.text((x + _CELL / 2, y + _ROW / 2), f"{weight:.3f}", ink, small, anchor="mm")
    draw.text((_PAD, top + _ROW * len(rows) + 10), note, "#5d6778", small)
    return np.asarray(picture)


def _colour(times: float) -> tuple[tuple[int, ...], str]:
    """Returns fill and ink for a weight that is `times` the uniform one."""
    height = math.log2(times) / _OCTAVES if times > 0 else -1.0
    share = min(1.0, abs(height))
    full = _HIGH if height > 0 else _LOW
    fill = tuple(round(w + (c - w) * share) for w, c in zip(_WHITE, full))
    return fill, "#ffffff" if share > 0.6 else "#1d2430"


def _slanted(picture: Image.Image, text: str, font: Any, x: int, y: int) -> None:
    """Writes a text that rises to the right from (x, y)."""
    *_, right, bottom = font.getbbox(text)
    strip = Image.new("L", (math.ceil(right) + 2, math.ceil(bottom) + 2), 0)
    ImageDraw.Draw(strip).text((0, 0), text, 255, font)
    turned = strip.rotate(45, Image.Resampling.BICUBIC, expand=True)
    picture.paste((29, 36, 48), (x - 4, y - turned.height + 4), turned)
