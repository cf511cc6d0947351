"""A PNG of many small images, each with a caption."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE, GAP, LINE = 64, 8, 13
"""Side of an image, space between two, height of a line of text, in pixels."""
WIDEST, SHEET = 170, 1040  # of a column and, where columns are wider than an image, of the whole


def contact_sheet(pixels: Tensor, captions: Sequence[str], columns: int = 10, legend: str = "") -> bytes:
    """Returns a PNG with the images in rows, each above its caption of one line or more.

    Args:
        pixels: uint8 (n, 1 or 3 or more channels, height, width); of more than three the first is shown in grey.
        captions: n texts; a line that is longer than 170 pixels is cut and ends in "...".
        columns: Images in a row; fewer where long captions make the columns wide.
        legend: A line above all: what the captions are.

    Raises:
        ValueError: There is no image, or the number of captions is wrong.
    """
    if not len(pixels) or len(pixels) != len(captions):
        raise ValueError(f"There are {len(pixels)} images and {len(captions)} captions; give one caption an image.")
    font = ImageFont.load_default(size=LINE - 1)
    lines = [[_cut(line, font) for line in caption.splitlines() or [""]] for caption in captions]
    high = TILE + LINE * max(map(len, lines)) + GAP
    wide = max(TILE, *(math.ceil(font.getlength(line)) for texts in lines for line in texts))
    columns = min(columns, len(lines))
    if wide > TILE:
        wide += GAP  # texts need more space between them than images
        columns = max(1, min(columns, (SHEET - GAP) // (wide + GAP)))
    rows = -(-len(lines) // columns)
    above = GAP + (LINE + GAP if legend else 0)
    least = math.ceil(font.getlength(legend)) + 2 * GAP if legend else 0
    sheet = Image.new("RGB", (max(least, columns * (wide + GAP) + GAP), rows * high + above), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), legend, "black", font)
    grey = pixels.shape[1] != 3
    for i, image in enumerate(pixels.cpu()):
        left, top = GAP + i % columns * (wide + GAP), above + i // columns * high
        array = image[0].numpy() if grey else image.permute(1, 2, 0).numpy()
        tile = Image.fromarray(array).convert("RGB")
        # whole multiples keep the pixels of small images sharp
        way = Image.Resampling.NEAREST if max(tile.size) <= TILE else Image.Resampling.BILINEAR
        scale = TILE / max(tile.size)
        tile = tile.resize((max(1, round(tile.width * scale)), max(1, round(tile.height * scale))), way)
        sheet.paste(tile, (left, top + (TILE - tile.height) // 2))
        for j, line in enumerate(lines[i]):
            draw.text((left, top + TILE + j * LINE), line, "black", font)
    buffer = io.BytesIO()
    # 64 colours are enough to recognise an image and take a third of the bytes
    sheet.quantize(64).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _cut(line: str, font: Any) -> str:
    """Returns the line, cut to at most `WIDEST` pixels."""
    if font.getlength(line) <= WIDEST:
        return line
    while line and font.getlength(line + "...") > WIDEST:
        line = line[:-1]
    return line + "..."
