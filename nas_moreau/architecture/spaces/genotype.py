"""Genotypes: what a search found, as data. JSON in and out; other people's printed dialects in. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from nas_moreau.architecture.spaces.genotype_text import Edge, read_printed, write_nas_bench_201
from nas_moreau.architecture.spaces.operation_table import check_operations
from nas_moreau.architecture.spaces.printed_values import CURE, MAX_CHARACTERS, MAX_NODES, is_whole
from nas_moreau.architecture.spaces.skeletons import (
    DARTS,
    IMPLIED,
    NAS_BENCH_201,
    SKELETONS,
    NetworkPart,
    Skeleton,
    named_skeleton,
    skeletons_with,
)
from nas_moreau.errors import InputError, quoted

VERSION = 1
MAX_TEXT = 16 * 1024 * 1024
"""Characters of a text that holds a genotype among other things: the log of a search."""
MAX_EDGES, MAX_JSON_DEPTH = 500, 12


class Cell(NamedTuple):
    """Edges (operation, from, to) and the nodes whose outputs are concatenated."""

    edges: tuple[Edge, ...]
    concat: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Genotype:
    """The cells of a network.

    Two genotypes are equal when their spaces and cells are, the edges into a node taken as a multiset: their order
    means nothing, but an edge may stand twice. A node may have no edge at all: it is zero.

    Args:
        space: Name of the search space.
        cells: Cell name ("normal" and "reduce", or "cell") -> cell. `concat` is kept in ascending order.
        skeleton: The network around the cells. By default the one that the names of the cells stand for: normal and
            reduce for darts, cell for nas_bench_201, else the only registered one with these cells.

    Raises:
        InputError: Lists everything that is wrong with the cells.

    Example:
        >>> g = Genotype.parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|")
        >>> g.space, len(g.cells["cell"].edges)
        ('nas_bench_201', 6)
        >>> Genotype.from_json(g.to_json()) == g
        True
    """

    space: str
    cells: Mapping[str, Cell]
    skeleton: Skeleton = None  # type: ignore[assignment]  # __post_init__ puts the default in its place

    def __post_init__(self) -> None:
        skeleton = _skeleton_of(self.cells) if self.skeleton is None else self.skeleton
        if set(self.cells) != set(skeleton.cells):
            raise InputError(
                f"A genotype with the skeleton {skeleton} has the cells {', '.join(skeleton.cells)}; this one has "
                f"{_listed(self.cells)}.",
                "Name its cells like this.",
            )
        problems = [problem for name, cell in self.cells.items() for problem in _cell_problems(name, cell, skeleton)]
        if not isinstance(self.space, str) or not 0 < len(self.space) <= 100:
            problems.append(f"the space is {quoted(self.space)}, not a name")
        if problems:
            raise InputError(
                f"The genotype does not describe a network: {'; '.join(problems[:10])}.", "Correct its cells."
            )
        cells = {
            name: Cell(tuple((op, a, b) for op, a, b in self.cells[name].edges), tuple(sorted(self.cells[name].concat)))
            for name in skeleton.cells
        }
        object.__setattr__(self, "cells", cells)
        object.__setattr__(self, "skeleton", skeleton)

    @property
    def inputs(self) -> int:
        """Number of input states of a cell."""
        return self.skeleton.inputs

    def network_parts(self, channels: int, layers: int) -> tuple[NetworkPart, ...]:
        """Returns the parts of the network of these cells, the stem first; see `Skeleton.parts`."""
        return self.skeleton.parts({name: len(cell.concat) for name, cell in self.cells.items()}, channels, layers)

    def to_dict(self) -> dict[str, Any]:
        """Returns the plain data of the JSON form, edges in their own order; `skeleton` if cells do not imply it."""
        cells = {n: {"edges": [list(e) for e in c.edges], "concat": list(c.concat)} for n, c in self.cells.items()}
        implied = IMPLIED.get(frozenset(self.cells)) == self.skeleton
        skeleton = {} if implied else {"skeleton": self.skeleton.name}
        return {"version": VERSION, "space": self.space, **skeleton, "cells": cells}

    def to_json(self) -> str:
        """Returns the JSON text (one line)."""
        return json.dumps(self.to_dict())

    def _repr_svg_(self) -> str | None:
        """Returns the drawing that notebooks show; None as long as `nas_moreau.drawing` is not imported."""
        return _drawings[-1](self) if _drawings else None

    def _canonical(self) -> str:
        data = self.to_dict()
        for cell in data["cells"].values():
            cell["edges"].sort(key=lambda edge: (edge[2], edge[1], edge[0]))
        return json.dumps(data, sort_keys=True, separators=(",", ":"))

    def digest(self) -> str:
        """Returns 16 hexadecimal digits that equal genotypes share: of the sha256 of the canonical JSON."""
        return hashlib.sha256(self._canonical().encode()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return self._canonical() == other._canonical() if isinstance(other, Genotype) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._canonical())

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any]) -> Genotype:
        """Returns the genotype of a JSON text, or of the plain data it holds.

        Raises:
            InputError: The text or data is not a genotype.
        """
        data: Any = _load_json(text) if isinstance(text, str) else text
        if not isinstance(data, Mapping) or not isinstance(data.get("cells"), Mapping):
            raise InputError("The JSON holds no genotype (no 'cells').", "Give a genotype.json of a run.")
        version = data.get("version")
        if not is_whole(version) or version != VERSION:
            raise InputError(
                f"The genotype has version {quoted(version)}; this program reads version {VERSION}.",
                "Use a newer nas_moreau, or set the version if it is wrong.",
            )
        problems = [
            f"unknown key {quoted(key)}" for key in data if key not in ("version", "space", "skeleton", "cells")
        ]
        cells = {}
        for name, cell in data["cells"].items():
            if not isinstance(cell, Mapping) or set(cell) != {"edges", "concat"}:
                problems.append(f"cell {quoted(name)} does not have just edges and concat")
            elif not isinstance(cell["edges"], list | tuple) or not isinstance(cell["concat"], list | tuple):
                problems.append(f"edges and concat of cell {quoted(name)} are not lists")
            else:
                cells[name] = Cell(tuple(cell["edges"]), tuple(cell["concat"]))
        if problems:
            raise InputError(f"The genotype's JSON is wrong: {'; '.join(problems[:10])}.", "Correct it.")
        space: Any = data.get("space")
        skeleton = named_skeleton(str(data["skeleton"])) if "skeleton" in data else None
        return cls(space, cells, skeleton)  # type: ignore[arg-type]  # which refuses a space that is not a name

    @classmethod
    def parse(cls, text: str, space: str | None = None, name: str | None = None) -> Genotype:
        """Returns the genotype of a text: our JSON, a printed `Genotype(normal=..., ...)`, or a NAS-Bench-201 string.

        A printed genotype may stand among other things: in the log of a search, in a source file, in quotes.

        Args:
            text: At most 64 KiB for a genotype, 16 MiB with what surrounds it. Nothing in it is evaluated.
            space: Name of the space for the dialects that carry none; by default "darts" ("robust_darts_s4" if noise
                is among the operations and all are that space's) and "nas_bench_201".
            name: Name of the genotype, or the number of its line, if the text holds several.

        Raises:
            InputError: The text is none of these, its nodes and counts do not fit, it holds several genotypes that
                differ, or it names an operation that does not exist.

        Example:
            >>> text = "DARTS = Genotype(normal=[('skip_connect', 0), ('sep_conv_3x3', 1)], normal_concat=range(2, 3), "
            >>> text += "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1)], reduce_concat=[2])  # found with seed 2"
            >>> Genotype.parse(text).cells["normal"]
            Cell(edges=(('skip_connect', 0, 2), ('sep_conv_3x3', 1, 2)), concat=(2,))
        """
        _check_length(text, MAX_TEXT)
        text = text.lstrip("\ufeff")
        if (alone := text.strip("'`\" \t\r\n")).startswith("{") and '"cells"' in alone:
            genotype = cls.from_json(alone)
        else:
            printed = read_printed(text, name)
            cells = {cell: Cell(tuple(edges), tuple(concat)) for cell, (edges, concat) in printed.cells.items()}
            names = {edge[0] for cell in cells.values() for edge in cell.edges}
            noisy = "noise" in names and names <= {"noise", "sep_conv_3x3"}
            implied = "nas_bench_201" if printed.nas_bench_201 else "robust_darts_s4" if noisy else "darts"
            genotype = cls(space or implied, cells)
        for cell_name, cell in genotype.cells.items():
            check_operations((operation for operation, _, _ in cell.edges), f"Cell {cell_name} of the genotype")
        return genotype

    def to_nas_bench_201(self) -> str:
        """Returns the benchmark's string of a cell with one edge between any two states.

        Raises:
            InputError: The genotype is of another kind.
        """
        cell = self.cells["cell"] if self.skeleton == NAS_BENCH_201 else Cell((), (0,))
        nodes = cell.concat[-1]
        by_place = {(a, b): op for op, a, b in cell.edges}
        places = [(a, b) for b in range(1, nodes + 1) for a in range(b)]
        if len(cell.edges) != len(places) or set(by_place) != set(places) or not places:
            raise InputError(
                "Only a cell with one edge between any two states has a NAS-Bench-201 string.", "Use JSON."
            )
        return write_nas_bench_201(by_place, nodes)

    def to_printed(self) -> str:
        """Returns the text that DARTS and its followers print; lists nest if some node has not two edges.

        Raises:
            InputError: The genotype is of another kind.
        """
        if self.skeleton != DARTS:
            raise InputError(f"Cells of the skeleton {self.skeleton} have no such form.", "Use to_json().")
        parts = []
        for name, cell in self.cells.items():
            last = max([*cell.concat, *(target for _, _, target in cell.edges)])
            nested = [[(op, a) for op, a, b in cell.edges if b == node] for node in range(2, last + 1)]
            flat = all(len(pairs) == 2 for pairs in nested)
            parts.append(f"{name}={[pair for pairs in nested for pair in pairs] if flat else nested}")
            parts.append(f"{name}_concat={list(cell.concat)}")
        return f"Genotype({', '.join(parts)})"


_drawings: list[Callable[[Genotype], str]] = []
Draw = TypeVar("Draw", bound=Callable[..., str])


def register_drawing(draw: Draw) -> Draw:
    """Makes notebooks show genotypes by `draw`, a function from a genotype to SVG; a decorator.

    Drawings build on genotypes, so that genotypes cannot import them.
    """
    _drawings.append(draw)
    return draw


def _check_length(text: str, limit: int = MAX_CHARACTERS) -> None:
    if not isinstance(text, str) or len(text) > limit:
        kind = f"has {len(text):,} characters" if isinstance(text, str) else f"is a {type(text).__name__}, not text"
        raise InputError(f"The genotype {kind}; it can have {limit:,}.", CURE)


def _load_json(text: str) -> Any:
    _check_length(text)
    depth = deepest = 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        deepest = max(depth, deepest)
    if deepest > MAX_JSON_DEPTH:
        raise InputError(f"The genotype's JSON is nested more than {MAX_JSON_DEPTH} deep.", CURE)

    def no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise InputError("The genotype's JSON has a key twice.", "Keep one of them.")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=no_doubles)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The genotype is not valid JSON: {str(error)[:80]}.", CURE) from None


def _skeleton_of(cells: Mapping[str, Any]) -> Skeleton:
    """Returns the skeleton that the names of the cells stand for."""
    implied = IMPLIED.get(frozenset(cells))
    if implied is not None:
        return implied
    found = skeletons_with(cells)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(skeleton.name for skeleton in found)
        raise InputError(f"Several skeletons have the cells {_listed(cells)}: {names}.", "Name one of them.")
    known = "; ".join(f"{skeleton.name}: {', '.join(skeleton.cells)}" for skeleton in SKELETONS.values())
    raise InputError(
        f"No skeleton has the cells {_listed(cells)}.",
        f"Name them as a skeleton does ({known}), or --import the file that registers one.",
    )


def _listed(cells: Mapping[str, Any]) -> str:
    return ", ".join(quoted(name) for name in list(cells)[:5]) or "none"


def _cell_problems(name: str, cell: Cell, skeleton: Skeleton) -> list[str]:
    """Returns why a cell is not a directed graph from its inputs to its concatenated nodes."""
    inputs = skeleton.inputs
    if not 1 <= len(cell.edges) <= MAX_EDGES:
        return [f"cell {name} has {len(cell.edges)} edges, not 1 to {MAX_EDGES}"]
    problems, last = [], inputs + MAX_NODES - 1
    for edge in cell.edges:
        if not (
            isinstance(edge, list | tuple) and len(edge) == 3 and isinstance(edge[0], str) and 0 < len(edge[0]) <= 100
        ):
            problems.append(f"an edge of cell {name} is not [operation, from, to]")
        elif not (is_whole(edge[1]) and is_whole(edge[2]) and 0 <= edge[1] < edge[2] and inputs <= edge[2] <= last):
            problems.append(
                f"cell {name} has an edge from {quoted(edge[1])} to {quoted(edge[2])}; edges lead to later nodes, "
                f"{inputs} to {last}"
            )
    for node in cell.concat:
        if not is_whole(node) or not inputs <= node <= last:
            problems.append(f"cell {name} concatenates {quoted(node)}, not a node ({inputs} to {last})")
    if not problems and (not cell.concat or len(set(cell.concat)) != len(cell.concat)):
        problems.append(f"cell {name} concatenates no node, or one twice")
    if not skeleton.concatenates and len(cell.concat) > 1:
        problems.append(f"cell {name} of the skeleton {skeleton} gives {len(cell.concat)} nodes, not one")
    return problems
