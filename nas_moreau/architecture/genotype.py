"""Genotypes: what a search found, as data. JSON in and out; other people's printed dialects in. Imports no torch.

Nothing is ever evaluated: printed Python is parsed to a syntax tree, of which only literals and the calls `Genotype(...)`
and `range(...)` are read.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nas_moreau.errors import InputError

VERSION = 1
MAX_CHARACTERS = 100_000
MAX_EDGES = 500
Edge = tuple[str, int, int]


class Cell(NamedTuple):
    """Edges (operation, from, to) and the nodes whose outputs are concatenated."""

    edges: tuple[Edge, ...]
    concat: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Genotype:
    """The cells of a network.

    Two genotypes are equal when their cells are, the edges into a node taken as a multiset: their order means nothing,
    but an edge may stand twice.

    Attributes:
        space: Name of the search space.
        cells: Cell name ("normal" and "reduce", or "cell") -> cell.

    Raises:
        InputError: The cells make no network (edges backwards, nodes without edges, nothing to concatenate).

    Example:
        >>> g = Genotype.parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|")
        >>> g.space, len(g.cells["cell"].edges)
        ('nas_bench_201', 6)
        >>> Genotype.from_json(g.to_json()) == g
        True
    """

    space: str
    cells: Mapping[str, Cell]

    def __post_init__(self) -> None:
        if set(self.cells) not in ({"normal", "reduce"}, {"cell"}):
            raise InputError(
                f"A genotype has the cells normal and reduce, or one named cell, not {', '.join(map(str, self.cells))}.",
                "Name them so.",
            )
        inputs = 1 if "cell" in self.cells else 2
        for name, cell in self.cells.items():
            _check_cell(name, cell, inputs)
        object.__setattr__(self, "cells", {n: self.cells[n] for n in ("normal", "reduce", "cell") if n in self.cells})

    def _canonical(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "space": self.space,
            "cells": {
                name: {
                    "edges": [list(e) for e in sorted(cell.edges, key=lambda e: (e[2], e[1], e[0]))],
                    "concat": sorted(cell.concat),
                }
                for name, cell in self.cells.items()
            },
        }

    def to_dict(self) -> dict[str, Any]:
        """Returns the plain data of the JSON form, edges in their own order."""
        cells = {n: {"edges": [list(e) for e in c.edges], "concat": list(c.concat)} for n, c in self.cells.items()}
        return {"version": VERSION, "space": self.space, "cells": cells}

    def to_json(self) -> str:
        """Returns the JSON text (one line)."""
        return json.dumps(self.to_dict())

    def digest(self) -> str:
        """Returns 16 hexadecimal digits that equal genotypes share."""
        text = json.dumps(self._canonical(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Genotype) and self._canonical() == other._canonical()

    def __hash__(self) -> int:
        return hash(self.digest())

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any]) -> Genotype:
        """Returns the genotype of a JSON text, or of the plain data it holds.

        Raises:
            InputError: It is no genotype.
        """
        data: Any = text
        if isinstance(text, str):
            _check_length(text)
            try:
                data = json.loads(text)
            except (ValueError, RecursionError):
                raise InputError("The genotype is not valid JSON.", "Mend it, or search again.") from None
        if not isinstance(data, Mapping) or not isinstance(data.get("cells"), Mapping):
            raise InputError("The JSON holds no genotype (no 'cells').", "Give a genotype.json of a run.")
        if data.get("version") != VERSION:
            raise InputError(
                f"The genotype has version {data.get('version')!r}; this program reads version {VERSION}.",
                "Use a newer nas_moreau, or set the version if it is wrong.",
            )
        if not isinstance(data.get("space"), str) or set(data) - {"version", "space", "cells"}:
            raise InputError("A genotype has the keys version, space (a name) and cells.", "Mend its keys.")
        cells = {}
        for name, cell in data["cells"].items():
            if not isinstance(cell, Mapping) or set(cell) != {"edges", "concat"}:
                raise InputError(f"Cell '{name}' does not have just edges and concat.", "Mend the cell.")
            if not isinstance(cell["edges"], (list, tuple)) or not isinstance(cell["concat"], (list, tuple)):
                raise InputError(f"The edges and concat of cell '{name}' are not lists.", "Mend the cell.")
            if any(not isinstance(edge, (list, tuple)) or len(edge) != 3 for edge in cell["edges"]):
                raise InputError(f"An edge of cell '{name}' is not [operation, from, to].", "Mend the cell.")
            cells[name] = Cell(tuple(tuple(edge) for edge in cell["edges"]), tuple(cell["concat"]))
        return cls(data["space"], cells)

    @classmethod
    def parse(cls, text: str) -> Genotype:
        """Returns the genotype of a text: our JSON, a printed `Genotype(normal=..., ...)`, or a NAS-Bench-201 string.

        Raises:
            InputError: The text is none of these, or names an operation that does not exist.
        """
        _check_length(text)
        text = text.strip()
        if text.startswith("{"):
            genotype = cls.from_json(text)
        elif text.startswith("|"):
            genotype = _from_nas_bench_201(text)
        else:
            genotype = _from_printed(text)
        from nas_moreau.architecture.space import check_operations

        for name, cell in genotype.cells.items():
            check_operations((operation for operation, _, _ in cell.edges), f"cell {name} of the genotype")
        return genotype

    def to_nas_bench_201(self) -> str:
        """Returns the benchmark's string of a cell with one edge between any two states.

        Raises:
            InputError: The genotype is of another kind.
        """
        cell = self.cells.get("cell")
        nodes = max(e[2] for e in cell.edges) if cell else 0
        by_place = {(a, b): op for op, a, b in cell.edges} if cell else {}
        if not cell or len(cell.edges) != len(by_place) or len(by_place) != nodes * (nodes + 1) // 2:
            raise InputError("Only a cell with one edge between any two states has a NAS-Bench-201 string.", "Use JSON.")
        return "+".join(
            "|" + "".join(f"{by_place[a, b]}~{a}|" for a in range(b)) for b in range(1, nodes + 1)
        )

    def to_printed(self) -> str:
        """Returns the text that DARTS and its followers print.

        Raises:
            InputError: The genotype is of another kind.
        """
        if "cell" in self.cells:
            raise InputError("A NAS-Bench-201 cell has no such form.", "Use to_nas_bench_201().")
        parts = []
        for name, cell in self.cells.items():
            last = max(e[2] for e in cell.edges)
            nested = [[(op, a) for op, a, b in cell.edges if b == node] for node in range(2, last + 1)]
            flat = all(len(pairs) == 2 for pairs in nested)
            parts.append(f"{name}={[p for pairs in nested for p in pairs] if flat else nested}")
            parts.append(f"{name}_concat={list(cell.concat)}")
        return f"Genotype({', '.join(parts)})"


def _check_length(text: str) -> None:
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
        raise InputError(f"The genotype is no text of at most {MAX_CHARACTERS:,} characters.", "Give a genotype.")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_cell(name: str, cell: Cell, inputs: int) -> None:
    """Raises InputError when a cell is no directed graph from its inputs to its concatenated nodes."""
    if not cell.edges or len(cell.edges) > MAX_EDGES:
        raise InputError(f"Cell '{name}' has {len(cell.edges)} edges.", f"Give 1 to {MAX_EDGES}.")
    for edge in cell.edges:
        operation, source, target = edge
        if not isinstance(operation, str) or not _whole(source) or not _whole(target):
            raise InputError(f"An edge of cell '{name}' is not (operation, from, to).", "Mend the cell.")
        if not 0 <= source < target or target < inputs:
            raise InputError(f"Cell '{name}' has an edge from {source} to {target}.", "Edges lead to later nodes.")
    targets = {edge[2] for edge in cell.edges}
    last = max(targets)
    if last > inputs + MAX_EDGES or targets != set(range(inputs, last + 1)):
        raise InputError(f"Cell '{name}' has a node without incoming edges.", "Give every node an edge.")
    if not cell.concat or not all(_whole(node) and inputs <= node <= last for node in cell.concat):
        raise InputError(f"Cell '{name}' concatenates {list(cell.concat)}.", f"Name nodes from {inputs} to {last}.")
    if len(set(cell.concat)) != len(cell.concat):
        raise InputError(f"Cell '{name}' concatenates a node twice.", "Name every node once.")


def _from_nas_bench_201(text: str) -> Genotype:
    edges: list[Edge] = []
    for node, group in enumerate(text.split("+"), 1):
        inner = group.strip()
        pairs = inner[1:-1].split("|") if len(inner) > 2 and inner[0] == inner[-1] == "|" else []
        if len(pairs) != node:
            raise InputError(f"Node {node} of the NAS-Bench-201 string does not have {node} edges.", "Check the string.")
        for source, pair in enumerate(pairs):
            match = re.fullmatch(r"(\w{1,60})~(\d{1,3})", pair)
            if not match or int(match[2]) != source:
                raise InputError(f"'{pair[:60]}' is not operation~{source}.", "Check the NAS-Bench-201 string.")
            edges.append((match[1], source, node))
    return Genotype("nas_bench_201", {"cell": Cell(tuple(edges), (len(text.split("+")),))})


def _from_printed(text: str) -> Genotype:
    # `name = Genotype(...)` is how they are kept in files
    body = re.sub(r"^\s*\w+\s*=\s*(?=Genotype\b)", "", text)
    try:
        tree = ast.parse(body, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(
            "The text is no genotype: neither JSON, nor Genotype(...), nor a NAS-Bench-201 string.", "Check the text."
        ) from None
    if not (isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "Genotype"):
        raise InputError("The text is no call of Genotype(...).", "Give the printed genotype alone.")
    fields = ("normal", "normal_concat", "reduce", "reduce_concat")
    values = dict(zip(fields, tree.args)) | {keyword.arg: keyword.value for keyword in tree.keywords}
    if set(values) != set(fields) or len(tree.args) > 4:
        raise InputError(f"Genotype(...) needs {', '.join(fields)}.", "Check the text.")
    cells = {}
    for name in ("normal", "reduce"):
        edges = _printed_edges(_literal(values[name], name), name)
        concat = _literal(values[f"{name}_concat"], f"{name}_concat")
        if not isinstance(concat, (list, tuple, range)) or len(concat) > MAX_EDGES:
            raise InputError(f"{name}_concat is no list of nodes.", "Check the text.")
        cells[name] = Cell(edges, tuple(concat))
    return Genotype("darts", cells)


def _literal(node: ast.expr, where: str) -> Any:
    """Returns the value of a literal or of range(...) with small literal arguments."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range" and not node.keywords:
        bounds = [_literal(argument, where) for argument in node.args]
        if 1 <= len(bounds) <= 3 and all(_whole(b) and abs(b) <= MAX_EDGES for b in bounds) and bounds[2:] != [0]:
            return range(*bounds)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise InputError(f"{where} of the genotype is no plain list.", "Only literals and range(...) are read.") from None


def _printed_edges(value: Any, name: str) -> tuple[Edge, ...]:
    """Returns edges from [(op, from), ...], two a node, or from one group of pairs for each node."""

    def is_pair(item: Any) -> bool:
        return isinstance(item, (list, tuple)) and len(item) >= 2 and isinstance(item[0], str) and _whole(item[1])

    if not isinstance(value, (list, tuple)) or not value or len(value) > MAX_EDGES:
        raise InputError(f"{name} of the genotype is no list of (operation, from) pairs.", "Check the text.")
    groups: Sequence[Any]
    if all(is_pair(item) for item in value):
        if len(value) % 2:
            raise InputError(f"{name} of the genotype lists {len(value)} pairs, which are not two a node.", "Nest them.")
        groups = [value[i : i + 2] for i in range(0, len(value), 2)]
    else:
        groups = value
    edges: list[Edge] = []
    for node, group in enumerate(groups, 2):
        if not isinstance(group, (list, tuple)) or not all(is_pair(pair) for pair in group):
            raise InputError(f"Node {node} of {name} is no group of (operation, from) pairs.", "Check the text.")
        edges += [(pair[0], pair[1], node) for pair in group]
    return tuple(edges)
