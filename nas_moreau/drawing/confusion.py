"""The confusion matrix of a classifier, for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nas_moreau.drawing.operation_style import shorten

_FULL, _WHITE, _INK = (0, 92, 158), (255, 255, 255), "#1d2430"
_NUMBERED, _NAMED = 12, 40  # classes up to which cells have numbers, and rows names
_SIDE, _PAD = 640, 10  # pixels: of the matrix at most, and around it


def draw_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> np.ndarray:
    """Returns the matrix as a picture, uint8 (height, width, 3): a row for each true class, shaded by its shares.

    Args:
        confusion: n rows (true class) of n counts (predicted class).
        classes: n names; they are left out with more than 40 classes, and the counts with more than 12.
    """
    n = len(classes)
    side = max(2, min(48 if n <= _NUMBERED else 20, _SIDE // n))
    font = ImageFont.load_default(size=12)
    # the font has few letters beyond ASCII, and its marks for the others have no width to rely on
    names = [shorten(name.encode("ascii", "replace").decode(), 20).replace("…", "..") for name in classes]
    names = names if n <= _NAMED else []
    left = _PAD + math.ceil(max([40.0, *map(font.getlength, names)])) + 8
    top = _PAD + 20
    picture = Image.new("RGB", (left + side * n + _PAD, top + side * n + _PAD), _WHITE)
    draw = ImageDraw.Draw(picture)
    draw.text((left, _PAD), "columns: predicted, in the order of the rows", _INK, font)
    for i, row in enumerate(confusion):
        y = top + side * i
        if names:
            draw.text((left - 8, y + side / 2), names[i], _INK, font, anchor="rm")
        for j, count in enumerate(row):
            share, x = count / max(1, sum(row)), left + side * j
            fill = tuple(round(w + (c - w) * share) for w, c in zip(_WHITE, _FULL))
            draw.rectangle((x, y, x + side - 1, y + side - 1), fill, "#d5dae1" if side > 8 else None)
            if count and n <= _NUMBERED:
                ink = "#ffffff" if share > 0.55 else _INK
                draw.text((x + side / 2, y + side / 2), str(count), ink, font, anchor="mm")
    return np.asarray(picture)
