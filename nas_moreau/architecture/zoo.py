"""Published cells by name, and genotypes from wherever they lie. Imports no torch."""

from __future__ import annotations

import difflib
from pathlib import Path

from nas_moreau.architecture.genotype import MAX_CHARACTERS, Cell, Edge, Genotype
from nas_moreau.errors import InputError

_SHORT = {
    "s3": "sep_conv_3x3", "s5": "sep_conv_5x5", "s7": "sep_conv_7x7", "d3": "dil_conv_3x3", "d5": "dil_conv_5x5",
    "mx": "max_pool_3x3", "av": "avg_pool_3x3", "sk": "skip_connect", "c71": "conv_7x1_1x7",
}  # fmt: skip

# name -> (source, normal, its concat, reduce, its concat); "s3 1, s3 0 ; ..." lists operation and source node by node
_ALL = (2, 3, 4, 5)
_CELLS: dict[str, tuple[str, str, tuple[int, ...], str, tuple[int, ...]]] = {
    "DARTS_V1": (
        "Liu, Simonyan, Yang: DARTS, ICLR 2019 (first order)",
        "s3 1, s3 0 ; sk 0, s3 1 ; sk 0, s3 1 ; s3 0, sk 2", _ALL,
        "mx 0, mx 1 ; sk 2, mx 0 ; mx 0, sk 2 ; sk 2, av 0", _ALL,
    ),
    "DARTS_V2": (
        "Liu, Simonyan, Yang: DARTS, ICLR 2019 (second order)",
        "s3 0, s3 1 ; s3 0, s3 1 ; s3 1, sk 0 ; sk 0, d3 2", _ALL,
        "mx 0, mx 1 ; sk 2, mx 1 ; mx 0, sk 2 ; sk 2, mx 1", _ALL,
    ),
    "PC_DARTS_cifar": (
        "Xu et al.: PC-DARTS, ICLR 2020",
        "s3 1, sk 0 ; s3 0, d3 1 ; s5 0, s3 1 ; av 0, d3 1", _ALL,
        "s5 1, mx 0 ; s5 1, s5 2 ; s3 0, s3 3 ; s3 1, s3 2", _ALL,
    ),
    "PDARTS": (
        "Chen et al.: Progressive DARTS, ICCV 2019",
        "sk 0, d3 1 ; sk 0, s3 1 ; s3 1, s3 3 ; s3 0, d5 4", _ALL,
        "av 0, s5 1 ; s3 0, d5 2 ; mx 0, d3 1 ; d3 1, d5 3", _ALL,
    ),
    "DrNAS_cifar10": (
        "Chen et al.: DrNAS, ICLR 2021",
        "s3 0, s5 1 ; s3 1, s3 2 ; sk 0, s3 1 ; s3 2, d5 3", _ALL,
        "mx 0, s5 1 ; d5 2, s5 1 ; s5 1, d5 3 ; sk 4, s5 1", _ALL,
    ),
    "GDAS_V1": (
        "Dong, Yang: GDAS, CVPR 2019",
        "sk 0, sk 1 ; sk 0, s5 2 ; s3 3, sk 0 ; s5 4, s3 3", _ALL,
        "s5 0, s3 1 ; s5 2, s5 1 ; d5 2, s3 1 ; s5 0, s5 1", _ALL,
    ),
    "NASNet": (
        "Zoph et al.: NASNet, CVPR 2018",
        "s5 1, s3 0 ; s5 0, s3 0 ; av 1, sk 0 ; av 0, av 0 ; s3 1, sk 1", (2, 3, 4, 5, 6),
        "s5 1, s7 0 ; mx 1, s7 0 ; av 1, s5 0 ; sk 3, av 2 ; s3 2, mx 1", (4, 5, 6),
    ),
    "AmoebaNet": (
        "Real et al.: AmoebaNet, AAAI 2019",
        "av 0, mx 1 ; s3 0, s5 2 ; s3 0, av 3 ; s3 1, sk 1 ; sk 0, av 1", (4, 5, 6),
        "av 0, s3 1 ; mx 0, s7 2 ; s7 0, av 1 ; mx 0, mx 1 ; c71 0, s3 5", (3, 4, 6),
    ),
    "MEHA": (
        "Liu et al.: Moreau envelope for nonconvex bi-level optimization, ICML 2024",
        "s3 0, d5 1 ; sk 0, s5 2 ; s3 3, s5 1 ; s5 3, s5 2", _ALL,
        "mx 0, s3 1 ; s5 2, av 1 ; mx 0, mx 3 ; d3 0, d3 4", _ALL,
    ),
}  # fmt: skip


def _edges(text: str) -> tuple[Edge, ...]:
    edges: list[Edge] = []
    for node, group in enumerate(text.split(";"), 2):
        for pair in group.split(","):
            short, source = pair.split()
            edges.append((_SHORT[short], int(source), node))
    return tuple(edges)


def published_names() -> list[str]:
    """Returns the names of the published cells."""
    return list(_CELLS)


def published_cell(name: str) -> Genotype:
    """Returns a published genotype.

    Raises:
        InputError: There is none of that name.
    """
    if name not in _CELLS:
        near = difflib.get_close_matches(name, _CELLS, 1, 0.5)
        cure = f"Did you mean '{near[0]}'?" if near else f"Known are {', '.join(_CELLS)}."
        raise InputError(f"There is no published cell '{name}'.", cure)
    _, normal, normal_concat, reduce, reduce_concat = _CELLS[name]
    cells = {"normal": Cell(_edges(normal), normal_concat), "reduce": Cell(_edges(reduce), reduce_concat)}
    return Genotype("darts", cells)


def source(name: str) -> str:
    """Returns where a published cell comes from."""
    published_cell(name)
    return _CELLS[name][0]


def load_genotype(text: str) -> Genotype:
    """Returns a genotype from a zoo name, a file, a run folder, or the text itself.

    Raises:
        InputError: It is none of these.
    """
    if text in _CELLS:
        return published_cell(text)
    if len(text) < 4096 and "\n" not in text and not text.lstrip().startswith(("{", "|", "Genotype")):
        path = Path(text)
        if path.is_dir():
            path = next((p for p in (path / "genotype.json", path / "search" / "genotype.json") if p.exists()), path)
        if not path.exists():
            near = difflib.get_close_matches(text, _CELLS, 1, 0.5)
            cure = f"Did you mean '{near[0]}'?" if near else "Give a genotype.json, a run folder, or a name of `list cells`."
            raise InputError(f"There is no genotype '{text}'.", cure)
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read(MAX_CHARACTERS + 1)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise InputError(f"The genotype {path} cannot be read: {reason}.", "Check the path.") from None
    return Genotype.parse(text)
