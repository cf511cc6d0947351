"""Channels and resolution of every part of a network, without building it. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple

from nas_moreau.architecture.spaces.genotype import Genotype

STEM_MULTIPLIER = 3  # DARTS' stem has three times the channels of the first cell


class Part(NamedTuple):
    """A part of a network, "stem", "residual" or a cell's name, and its output."""

    name: str
    channels: int
    height: int
    width: int


def reduction_places(layers: int) -> tuple[int, ...]:
    """Returns the indices of DARTS' reduction cells: a third and two thirds of the way through `layers` cells."""
    return tuple(sorted({layers // 3, 2 * layers // 3}))


def network_parts(genotype: Genotype, channels: int, layers: int, image_size: tuple[int, int]) -> list[Part]:
    """Returns the stem and the cells in the order in which they run.

    Args:
        genotype: Its cells decide the skeleton, as in `Network`.
        channels: Channels of the first cell's nodes.
        layers: Cells in all (DARTS) or cells a stage (NAS-Bench-201).
        image_size: Height and width.
    """
    height, width = image_size
    stem = channels if genotype.inputs == 1 else STEM_MULTIPLIER * channels
    parts = [Part("stem", stem, height, width)]
    if genotype.inputs == 1:
        names = (["cell"] * layers + ["residual"]) * 2 + ["cell"] * layers
        widths = {"cell": 1, "residual": 1}
    else:
        names = ["reduce" if i in reduction_places(layers) else "normal" for i in range(layers)]
        widths = {name: len(cell.concat) for name, cell in genotype.cells.items()}
    for name in names:
        if name in ("reduce", "residual"):
            channels, height, width = 2 * channels, -(-height // 2), -(-width // 2)
        parts.append(Part(name, channels * widths[name], height, width))
    return parts
