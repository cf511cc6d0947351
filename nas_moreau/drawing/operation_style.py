"""Style of operations in drawings: a short label, a colour, a shape and a line pattern.

Colours are those of Okabe and Ito (distinct for colour-blind people); each family has its shape and each size its line
pattern, so that a drawing can be read in grey too.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections import Counter
from typing import NamedTuple

from nas_moreau.architecture.spaces.genotype import Genotype

LABEL_SIZE = 12.0
"""Font size of operation labels, in units of the drawing."""


class Look(NamedTuple):
    """Colour "#rrggbb", shape (of `drawing.cell.outline`), dash pattern (lengths of dashes and gaps, () for solid)."""

    colour: str
    shape: str
    dash: tuple[float, ...]


_FAMILIES = (  # the first one with which a name begins
    ("none", "#a0a0a0", "box"),
    ("skip_connect", "#5b6472", "capsule"),
    ("max_pool", "#d55e00", "narrowing"),
    ("avg_pool", "#c98a00", "widening"),
    ("sep_conv", "#0072b2", "box"),
    ("dil_conv", "#009e73", "hexagon"),
    ("nor_conv", "#9a4fb5", "plate"),
    ("conv", "#9a4fb5", "plate"),
    ("noise", "#b3224f", "octagon"),
)
_UNKNOWN = ("#a6611a", "#3288bd", "#7a8f00", "#c51b7d", "#35807a", "#6a51a3")
_DASHES = {"1x1": (1.5, 3.0), "3x3": (), "5x5": (9.0, 4.0), "7x7": (9.0, 3.0, 2.0, 3.0)}
_SHORT = {"skip_connect": "skip", "nor": "conv"}


def look(operation: str) -> Look:
    """Returns the look of an operation; that of an unknown one depends on its name alone."""
    size = re.search(r"\d+x\d+", operation)
    dash = _DASHES.get(size.group(), (5.0, 3.0)) if size else ()
    if operation in ("none", "skip_connect"):
        dash = (1.5, 3.0) if operation == "none" else (8.0, 2.5, 1.5, 2.5)
    for start, colour, shape in _FAMILIES:
        if operation.startswith(start):
            return Look(colour, shape, dash)
    return Look(_UNKNOWN[zlib.crc32(operation.encode("utf-8", "replace")) % len(_UNKNOWN)], "octagon", dash)


def label(operation: str) -> str:
    """Returns the label in drawings: "sep conv 3×3" for sep_conv_3x3, cut after 22 characters."""
    text = _SHORT.get(operation, operation)
    text = re.sub(r"^nor_conv", "conv", text)
    text = re.sub(r"(?<=\d)x(?=\d)", "×", text)
    text = re.sub(r"(?<=\d)_(?=\d)", " ", text).replace("_", " ")
    return shorten(text, 22)


def cell_title(name: str) -> str:
    """Returns the heading of a cell: "normal cell" for normal, "cell" for cell."""
    return name if name == "cell" else f"{name} cell"


def operations_line(genotype: Genotype) -> str:
    """Returns a genotype's cells in one line: the operations with their numbers, the most frequent first."""
    cells = []
    for name, cell in genotype.cells.items():
        counts = Counter(label(operation) for operation, _, _ in cell.edges).most_common()
        text = ", ".join(f"{count} {operation}" for operation, count in counts)
        cells.append(text if len(genotype.cells) == 1 else f"{shorten(name, 22)}: {text}")
    return "; ".join(cells)


def shorten(text: str, length: int) -> str:
    """Returns `text` without control characters, at most `length` characters long."""
    clean = "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)
    return clean if len(clean) <= length else clean[: length - 1] + "…"


def text_width(text: str, size: float) -> float:
    """Returns a width, in units of the drawing, that `text` does not exceed in common sans-serif fonts."""
    total = 0.0
    for character in text:
        if character in "ilj.,:;|!'· ":
            total += 0.36
        elif character in "mwMW@%—" or unicodedata.east_asian_width(character) in "WF":
            total += 1.05
        elif character.isupper():
            total += 0.76
        else:
            total += 0.61
    return total * size
