"""Genotypes as other programs print them: `Genotype(normal=...)`, the same as a dict, NAS-Bench-201 strings.

Pairs (operation, from) of a cell come in these forms; the number of nodes, which the concatenation gives, decides:

    flat        two pairs for each node (DARTS, PC-DARTS, P-DARTS, NASNet, AmoebaNet)
    all edges   one pair for each earlier state: 2 + 3 + 4 + ... (SNAS)
    nested      a list of pairs for each node (RobustDARTS, AutoDL-Projects)
    triples     (operation, to, from) in any order (FairDARTS)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from nas_moreau.architecture.spaces.printed_places import Place, choose, piece_of
from nas_moreau.architecture.spaces.printed_values import CURE, MAX_NODES, Call, Reader, is_whole, refused
from nas_moreau.errors import meant, quoted

Edge = tuple[str, int, int]
FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
UNUSED = {"connectN": (None,), "connects": (None,), "layout": (None, "cell")}
"""Fields of AutoDL-Projects and sharpDARTS -> the values with which they change nothing."""

_PAIR_OF_201 = re.compile(r"([A-Za-z0-9_]{1,60})~(\d{1,2})", re.ASCII)


class Printed(NamedTuple):
    """The cells of a printed genotype: name -> (edges, concat), and whether they are those of NAS-Bench-201."""

    cells: dict[str, tuple[list[Edge], list[int]]]
    nas_bench_201: bool


def read_printed(text: str, name: str | None = None) -> Printed:
    """Returns the genotype that a text holds, alone or among other things.

    Args:
        text: A printed genotype, a log, a source file.
        name: Name of the genotype in the text, or the number of its line, if there are several.

    Raises:
        InputError: It holds none, several that differ, or one that does not fit together.
    """
    found = choose(text, name, _read_place)
    return _cells_of(Reader(piece_of(text)).whole()) if found is None else found


def _read_place(place: Place) -> Printed:
    if place.problem:
        raise refused(place.problem)
    if place.piece is None:
        return Printed({"cell": read_nas_bench_201(place.string)}, True)
    return _cells_of(Reader(place.piece).whole())


def _cells_of(value: Any) -> Printed:
    """Returns the cells of a value that a program printed."""
    if isinstance(value, list) or (isinstance(value, Call) and value.name == "Structure"):
        groups = value if isinstance(value, list) else value.values[0] if len(value.values) == 1 else value.values
        return Printed({"cell": _all_pairs_from_0(groups)}, True)
    if isinstance(value, Call):
        if len(value.values) > len(FIELDS):
            raise refused(f"it has {len(value.values)} values by position, more than {', '.join(FIELDS)}")
        by_position = dict(zip(FIELDS, value.values))
        if twice := [name for name in by_position if name in value.fields]:
            raise refused(f"it has the field {twice[0]} twice")
        value = by_position | value.fields
    if not isinstance(value, dict):
        raise refused("it is a value of another kind")
    if "recurrent" in value:
        raise refused("it is a recurrent cell", "Give a genotype of convolutional cells, normal and reduce.")
    for key, content in value.items():
        if key in UNUSED and content not in UNUSED[key]:
            raise refused(
                f"its {key} is {quoted(content)}, which is not read", f"Leave {key} out if it changes nothing."
            )
        if key not in FIELDS and key not in UNUSED:
            raise refused(f"it has an unknown field {quoted(key)}{meant(key, FIELDS)}")
    _check_complete(value)
    return Printed({name: _cell(value[name], value[f"{name}_concat"], name) for name in ("normal", "reduce")}, False)


def _check_complete(fields: Mapping[str, Any]) -> None:
    missing = [name for name in FIELDS if name not in fields]
    if not missing:
        return
    cure = CURE
    if missing == ["reduce", "reduce_concat"]:
        cure = "Add reduce=[...] and reduce_concat=...: to use one cell in both places, repeat the lists of normal."
    elif all(name.endswith("_concat") for name in missing):
        cure = f"Add {' and '.join(f'{name}=range(2, 6)' for name in missing)}, with the nodes that are concatenated."
    raise refused(f"it has no {', '.join(missing)}", cure)


def _cell(value: Any, concat: Any, name: str) -> tuple[list[Edge], list[int]]:
    concat = [concat] if is_whole(concat) else concat
    if not isinstance(concat, list) or not all(is_whole(node) for node in concat):
        raise refused(f"{name}_concat is not a list of nodes")
    if not concat or not 2 <= max(concat) < MAX_NODES + 2:
        raise refused(
            f"{name}_concat concatenates {f'node {max(concat)}' if concat else 'no node'}; nodes begin with 2"
        )
    if not isinstance(value, list) or not value or not all(isinstance(item, list) for item in value):
        raise refused(f"{name} is not a list of (operation, from) pairs")
    nodes, value = max(concat) - 1, _without_weights(value)
    if all(_is_triple(item) for item in value):
        return _edges_of_triples(value, nodes, name), concat
    if all(_is_pair(item) for item in value):
        value = _grouped(value, nodes, name)
    if len(value) != nodes:
        raise refused(
            f"{name} lists nodes 2 to {len(value) + 1}, and {name}_concat ends with node {max(concat)}",
            "Correct the list or the concatenation.",
        )
    edges: list[Edge] = []
    for node, group in enumerate(value, 2):
        # `(('skip_connect', 0))` is how a node of one edge comes out when the comma is forgotten
        group = [group] if _is_pair(group) else group
        if not isinstance(group, list) or not all(_is_pair(pair) or _is_triple(pair) for pair in group):
            raise refused(f"node {node} of {name} is not a list of (operation, from) pairs")
        edges += [(pair[0], _source(pair, node, name), node) for pair in group]
    return edges, concat


def _grouped(pairs: list[Any], nodes: int, name: str) -> list[Any]:
    """Returns the pairs of each node of a flat list: two, or one for each earlier state."""
    if len(pairs) == 2 * nodes:
        return [pairs[i : i + 2] for i in range(0, len(pairs), 2)]
    if len(pairs) == nodes * (nodes + 3) // 2:
        groups, start = [], 0
        for node in range(2, nodes + 2):
            groups.append(pairs[start : start + node])
            start += node
        if all({pair[1] for pair in group} == set(range(len(group))) for group in groups):
            return groups
    raise refused(
        f"{name} lists {len(pairs)} pairs for the {nodes} nodes that {name}_concat reaches, neither two for each node "
        f"({2 * nodes}) nor one for each earlier state ({nodes * (nodes + 3) // 2})",
        "Correct the list or the concatenation, or write a list of pairs for each node.",
    )


def _edges_of_triples(triples: list[Any], nodes: int, name: str) -> list[Edge]:
    """Returns the edges of (operation, to, from) triples, or of (operation, from, to) if all are in this order."""
    if all(first > second for _, first, second in triples):
        edges = [(operation, source, node) for operation, node, source in triples]
    elif all(first < second for _, first, second in triples):
        edges = [(operation, source, node) for operation, source, node in triples]
    else:
        raise refused(f"the triples of {name} are neither (operation, to, from) nor (operation, from, to)")
    if len(set(edges)) < len(edges):
        raise refused(f"{name} lists one operation of an edge twice")
    if wrong := [node for _, _, node in edges if not 2 <= node < nodes + 2]:
        raise refused(f"{name} has an edge to node {wrong[0]}, and its nodes are 2 to {nodes + 1}")
    return edges


def _without_weights(value: list[Any]) -> list[Any]:
    """Returns the pairs of (operation, from, weight), which some searches print; other lists as they are."""
    items = [item for group in value for item in ([group] if _is_triple(group) else group) if _is_triple(item)]
    if not any(isinstance(item[2], float) for item in items):
        return value
    return [
        group[:2] if _is_triple(group) else [item[:2] if _is_triple(item) else item for item in group]
        for group in value
    ]


def _is_pair(item: Any) -> bool:
    """Returns whether item is (operation, from)."""
    return isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) and is_whole(item[1])


def _is_triple(item: Any) -> bool:
    """Returns whether item is (operation, node, number)."""
    return (
        isinstance(item, list)
        and len(item) == 3
        and isinstance(item[0], str)
        and is_whole(item[1])
        and (is_whole(item[2]) or isinstance(item[2], float))
    )


def _source(pair: Any, node: int, name: str) -> int:
    """Returns where an edge into `node` comes from."""
    if not _is_triple(pair):
        return int(pair[1])
    nodes = pair[1:]
    if nodes.count(node) != 1 or sum(nodes) - node > node:
        raise refused(f"node {node} of {name} lists an edge between {pair[1]} and {pair[2]}")
    return int(sum(nodes) - node)


def _all_pairs_from_0(groups: Any) -> tuple[list[Edge], list[int]]:
    """Returns the cell of nested pairs with one edge between any two states (AutoDL-Projects' Structure)."""
    if isinstance(groups, list) and groups and all(is_whole(item) or _numbers(item) for item in groups):
        raise refused("it is a list of numbers (as NAO and ENAS print), whose meaning depends on a table of operations")
    if not isinstance(groups, list) or not 1 <= len(groups) <= MAX_NODES:
        raise refused("it is a value of another kind")
    edges: list[Edge] = []
    for node, group in enumerate(groups, 1):
        group = [group] if _is_pair(group) else group
        fits = isinstance(group, list) and all(_is_pair(pair) for pair in group)
        if not fits or sorted(pair[1] for pair in group) != list(range(node)):
            raise refused(
                "it is a list of something else than the pairs of a NAS-Bench-201 cell, one from each earlier state"
            )
        edges += [(pair[0], pair[1], node) for pair in sorted(group, key=lambda pair: pair[1])]
    return edges, [len(groups)]


def _numbers(item: Any) -> bool:
    return isinstance(item, list) and bool(item) and all(map(is_whole, item))


def read_nas_bench_201(text: str) -> tuple[list[Edge], list[int]]:
    """Returns (edges, concat) of a string such as `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`, any number of nodes.

    Raises:
        InputError: The text is not of this form.
    """
    groups = text.split("+")
    if len(groups) > MAX_NODES:
        raise refused(f"it has {len(groups)} nodes, more than {MAX_NODES}")
    edges: list[Edge] = []
    for node, group in enumerate(groups, 1):
        inner = group.strip()
        pairs = inner[1:-1].split("|") if len(inner) > 2 and inner[0] == inner[-1] == "|" else []
        matches = [_PAIR_OF_201.fullmatch(pair) for pair in pairs]
        found = sorted((int(match[2]), match[1]) for match in matches if match)
        if len(found) != len(pairs) or [source for source, _ in found] != list(range(node)):
            raise refused(
                f"node {node} of the NAS-Bench-201 string is not |op~0|..., one operation from each of {node}"
            )
        edges += [(operation, source, node) for source, operation in found]
    return edges, [len(groups)]


def write_nas_bench_201(by_place: Mapping[tuple[int, int], str], nodes: int) -> str:
    """Returns the string of a cell with `nodes` nodes, given the operation of every edge (from, to)."""
    return "+".join("|" + "".join(f"{by_place[a, b]}~{a}|" for a in range(b)) for b in range(1, nodes + 1))
