"""The files in which a run keeps its cell."""

from __future__ import annotations

from typing import Any

from nas_moreau.architecture.spaces.genotype import Genotype
from nas_moreau.drawing.cell import draw_genotype, draw_png


def genotype_files(
    genotype: Genotype, alphas: dict[str, list[list[float]]] | None = None, space: Any = None, png: bool = False
) -> dict[str, bytes]:
    """Returns the contents of genotype.json, genotype.svg and, with `png`, genotype.png, by file name.

    Args:
        genotype: The cell.
        alphas: Softmax weights by cell name, (edges, operations), which the drawing tells; None for none.
        space: Whose edges and operations those are.
        png: Also as pixels, which takes longer.
    """
    files = {
        "genotype.json": (genotype.to_json() + "\n").encode(),
        "genotype.svg": draw_genotype(genotype, alphas, space).encode(),
    }
    return files | ({"genotype.png": draw_png(genotype, alphas, space)} if png else {})
