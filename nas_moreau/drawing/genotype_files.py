"""The files of a run's genotype."""

from __future__ import annotations

from nas_moreau.architecture.spaces.alpha_table import AlphaTable
from nas_moreau.architecture.spaces.genotype import Genotype
from nas_moreau.drawing.cell import draw_genotype, draw_png


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
