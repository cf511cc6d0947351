"""Published and released cells by name, and genotypes from files, run folders and text. Imports no torch."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from nas_moreau.architecture.spaces.genotype import MAX_TEXT, Cell, Genotype
from nas_moreau.architecture.spaces.genotype_text import Edge
from nas_moreau.architecture.spaces.printed_places import SEVERAL, find_places
from nas_moreau.errors import InputError, meant, quoted
from nas_moreau.yaml_files import read_text

_MAX_RESULT = 64 << 20
"""Bytes of a result.json that are read."""
_SHORT = {
    "s3": "sep_conv_3x3",
    "s5": "sep_conv_5x5",
    "s7": "sep_conv_7x7",
    "d3": "dil_conv_3x3",
    "d5": "dil_conv_5x5",
    "mx": "max_pool_3x3",
    "av": "avg_pool_3x3",
    "sk": "skip_connect",
    "c71": "conv_7x1_1x7",
}


class _Published(NamedTuple):
    """A published cell: "s3 1, s3 0 ; ..." lists operation and source, node by node."""

    source: str
    normal: str
    reduce: str
    normal_concat: tuple[int, ...] = (2, 3, 4, 5)
    reduce_concat: tuple[int, ...] = (2, 3, 4, 5)


_CELLS = {
    "DARTS_V1": _Published(
        "Liu, Simonyan, Yang: DARTS, ICLR 2019 (first order)",
        "s3 1, s3 0 ; sk 0, s3 1 ; sk 0, s3 1 ; s3 0, sk 2",
        "mx 0, mx 1 ; sk 2, mx 0 ; mx 0, sk 2 ; sk 2, av 0",
    ),
    "DARTS_V2": _Published(
        "Liu, Simonyan, Yang: DARTS, ICLR 2019 (second order)",
        "s3 0, s3 1 ; s3 0, s3 1 ; s3 1, sk 0 ; sk 0, d3 2",
        "mx 0, mx 1 ; sk 2, mx 1 ; mx 0, sk 2 ; sk 2, mx 1",
    ),
    "PC_DARTS_cifar": _Published(
        "Xu et al.: PC-DARTS, ICLR 2020",
        "s3 1, sk 0 ; s3 0, d3 1 ; s5 0, s3 1 ; av 0, d3 1",
        "s5 1, mx 0 ; s5 1, s5 2 ; s3 0, s3 3 ; s3 1, s3 2",
    ),
    "PDARTS": _Published(
        "Chen et al.: Progressive DARTS, ICCV 2019",
        "sk 0, d3 1 ; sk 0, s3 1 ; s3 1, s3 3 ; s3 0, d5 4",
        "av 0, s5 1 ; s3 0, d5 2 ; mx 0, d3 1 ; d3 1, d5 3",
    ),
    "DrNAS_cifar10": _Published(
        "Chen et al.: DrNAS, ICLR 2021",
        "s3 0, s5 1 ; s3 1, s3 2 ; sk 0, s3 1 ; s3 2, d5 3",
        "mx 0, s5 1 ; d5 2, s5 1 ; s5 1, d5 3 ; sk 4, s5 1",
    ),
    "GDAS_V1": _Published(
        "Dong, Yang: GDAS, CVPR 2019",
        "sk 0, sk 1 ; sk 0, s5 2 ; s3 3, sk 0 ; s5 4, s3 3",
        "s5 0, s3 1 ; s5 2, s5 1 ; d5 2, s3 1 ; s5 0, s5 1",
    ),
    "NASNet": _Published(
        "Zoph et al.: NASNet, CVPR 2018",
        "s5 1, s3 0 ; s5 0, s3 0 ; av 1, sk 0 ; av 0, av 0 ; s3 1, sk 1",
        "s5 1, s7 0 ; mx 1, s7 0 ; av 1, s5 0 ; sk 3, av 2 ; s3 2, mx 1",
        (2, 3, 4, 5, 6),
        (4, 5, 6),
    ),
    "AmoebaNet": _Published(
        "Real et al.: AmoebaNet, AAAI 2019",
        "av 0, mx 1 ; s3 0, s5 2 ; s3 0, av 3 ; s3 1, sk 1 ; sk 0, av 1",
        "av 0, s3 1 ; mx 0, s7 2 ; s7 0, av 1 ; mx 0, mx 1 ; c71 0, s3 5",
        (4, 5, 6),
        (3, 4, 6),
    ),
    "MEHA": _Published(
        "Liu et al.: Moreau envelope for nonconvex bi-level optimization, ICML 2024",
        "s3 0, d5 1 ; sk 0, s5 2 ; s3 3, s5 1 ; s5 3, s5 2",
        "mx 0, s3 1 ; s5 2, av 1 ; mx 0, mx 3 ; d3 0, d3 4",
    ),
}


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


def _released() -> dict[str, Path]:
    """Returns the folders of the cells that this project found, by name."""
    package = Path(__file__).resolve().parents[2]
    # inside the package when installed from a wheel, beside it in a checkout
    for folder in (package / "released", package.parent / "checkpoints" / "released"):
        if found := sorted(folder.glob("*/genotype.json")):
            return {path.parent.name: path.parent for path in found}
    return {}


def released_names() -> list[str]:
    """Returns the names of the cells that this project found and released."""
    return list(_released())


def cell_names() -> list[str]:
    """Returns all names that `load_genotype` knows: published cells, then released ones."""
    return [*published_names(), *released_names()]


def published_cell(name: str) -> Genotype:
    """Returns a published genotype. All have the space "darts", whose topology they have or (NASNet, AmoebaNet) extend.

    Raises:
        InputError: There is none of that name.
    """
    found = _entry(name)
    normal, reduce = Cell(_edges(found.normal), found.normal_concat), Cell(_edges(found.reduce), found.reduce_concat)
    return Genotype("darts", {"normal": normal, "reduce": reduce})


def source(name: str) -> str:
    """Returns the source of a cell: authors, paper, venue and year, or the search of this project that found it.

    Raises:
        InputError: The name is unknown.
    """
    released = _released()
    return provenance(name)["source"] if name in released else _entry(name).source


def provenance(name: str) -> dict[str, Any]:
    """Returns how a released cell was made: command, seed, commit, hardware, metrics and configuration.

    Raises:
        InputError: No cell of that name was released.
    """
    released = _released()
    if name not in released:
        raise InputError(
            f"Unknown released cell {quoted(name)}{meant(name, released)}.",
            f"Known are {', '.join(released)}.",
        )
    return json.loads(read_text(released[name] / "provenance.json", "Provenance file"))


def _entry(name: str) -> _Published:
    if name not in _CELLS:
        raise InputError(
            f"Unknown published cell {quoted(name)}{meant(name, _CELLS)}.",
            f"Known are {', '.join(_CELLS)}.",
        )
    return _CELLS[name]


_BEGINNINGS = ("{", "|", "[(", "[[", "((")
"""How genotypes begin and paths do not."""


def load_genotype(text_path_or_name: str | PathLike[str]) -> Genotype:
    """Returns a genotype from the name of a cell, a file, a run folder, or the text itself.

    Args:
        text_path_or_name: Tried in this order: a name of `published_names()`; genotype text in any form that
            `Genotype.parse` reads; a run folder (its genotype.json, or that of its search); a file, with ":" and the
            name of a genotype or its line if the file holds several (`genotypes.py:DARTS_V2`, `log.txt:812`); a name
            of `released_names()`.

    Raises:
        InputError: It is none of these, or the file holds no genotype.
    """
    text = str(text_path_or_name)
    if text in _CELLS:
        return published_cell(text)
    if len(text) > 4096 or "\n" in text.strip() or text.lstrip("\"' ").startswith(_BEGINNINGS) or find_places(text):
        return Genotype.parse(text)
    file, _, name = text.rpartition(":")
    path = _genotype_file(text) or _genotype_file(file if name else "")
    if path is None and text in (released := _released()):
        path = released[text] / "genotype.json"
    elif path is None:
        raise InputError(
            f"{quoted(text, 200)} is not a genotype, a file or the name of a cell{meant(text, cell_names())}.",
            "Give a genotype.json, a run folder, a genotype as text, or a name of `nas-moreau list cells`.",
        )
    if not path.exists() and path.name == "genotype.json":
        raise InputError(f"{path.parent} is a folder without a genotype.", "Give the folder of a finished search.")
    chosen = None if _genotype_file(text) or not name else name
    try:
        found = Genotype.parse(read_text(path, "Genotype file", MAX_TEXT), name=chosen)
    except InputError as error:
        if str(path) in error.cause:
            raise
        raise InputError(f"{path}: {error.cause}", error.cure.replace(SEVERAL, str(path))) from None
    refuse_other_cells(path, found)
    return found


def _genotype_file(text: str) -> Path | None:
    """Returns the file of a genotype that a path leads to: itself, or that in a run folder; None if there is none."""
    if not text:
        return None
    path = Path(text)
    try:
        if path.is_dir():
            places = [path / "genotype.json", path / "search" / "genotype.json"]
            return next((place for place in places if place.is_file()), places[0])
        return path if path.exists() else None
    except (OSError, ValueError):  # a name too long, or with a null character
        return None


def refuse_other_cells(path: Path, genotype: Genotype) -> None:
    """Refuses the genotype of a run's genotype.json that is not the one in the result.json beside it.

    Args:
        path: The file that the genotype was read from; of another name it belongs to no run.
        genotype: What it holds.

    Raises:
        InputError: The digests differ.
    """
    if path.name != "genotype.json":
        return
    try:
        with open(path.with_name("result.json"), "rb") as file:
            digest = json.loads(file.read(_MAX_RESULT))["digest"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return  # nothing to compare with: a cell of a comparison, or a search in progress
    if digest != genotype.digest():
        raise InputError(
            f"{path} holds other cells (digest {genotype.digest()}) than the run's result.json ({quoted(digest)}).",
            "Restore the one that was changed; derive --write replaces both.",
        )
