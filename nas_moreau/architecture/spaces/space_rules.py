"""What makes a search space valid; every function returns sentences about what is wrong, none raises."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nas_moreau.architecture.spaces.operation_table import unknown_operations
from nas_moreau.architecture.spaces.skeletons import Skeleton
from nas_moreau.errors import meant, quoted

Place = tuple[int, int]  # where an edge runs: from, to


DERIVATIONS = ("top_edges", "all_edges")
MAX_NODES, MAX_OPERATIONS = 32, 64
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def all_edges(inputs: int, nodes: int) -> tuple[Place, ...]:
    """Returns (from, to) from every state to every later intermediate node: `to` ascending, then `from`."""
    return tuple((source, target) for target in range(inputs, inputs + nodes) for source in range(target))


def all_operations(edge_operations: Iterable[Iterable[Sequence[str]]]) -> tuple[str, ...]:
    """Returns the operations of all edges of all cells, in the order in which they are first named."""
    return tuple(dict.fromkeys(name for cell in edge_operations for names in cell for name in names))


def name_problems(name: object) -> list[str]:
    """Returns what is wrong with a space's name."""
    if isinstance(name, str) and NAME.fullmatch(name):
        return []
    return [f"name is {quoted(name)}, not 1 to 64 letters, digits, '_', '.' or '-' that begin with a letter or digit"]


def operation_problems(operations: Sequence[str]) -> list[str]:
    """Returns what is wrong with the candidates of every edge."""
    problems = unknown_operations(operations)
    problems += [f"operation {quoted(o)} is listed twice" for o in dict.fromkeys(operations) if operations.count(o) > 1]
    if not set(operations) - {"none"}:
        problems.append("operations holds nothing but none" if operations else "operations is empty")
    if len(operations) > MAX_OPERATIONS:
        problems.append(f"operations has {len(operations)} entries, more than {MAX_OPERATIONS}")
    return problems


def edge_operation_problems(
    edge_operations: Sequence[Sequence[Sequence[str]]],
    operations: Sequence[str],
    exclude: Sequence[str],
    cells: Sequence[str],
    edges: Sequence[Place],
) -> list[str]:
    """Returns what is wrong with the candidates of single edges."""
    if len(edge_operations) != len(cells) or any(len(rows) != len(edges) for rows in edge_operations):
        return ["edge_operations needs a list for every edge of every cell"]
    problems = []
    if tuple(operations) != all_operations(edge_operations):
        problems.append("operations are not those of the edges, in the order in which these name them")
    for cell, rows in zip(cells, edge_operations):
        for (source, target), names in zip(edges, rows):
            where = f"edge {source}-{target} of cell {cell}"
            if len(set(names)) < len(names):
                problems.append(f"{where} lists an operation twice")
            if not set(names) - {"none"}:
                problems.append(f"{where} has no operation but none")
            elif not set(names) - set(exclude):
                problems.append(f"derivation.exclude leaves no operation to choose on {where}")
    return problems


def edge_problems(edges: Sequence[Place], inputs: int, nodes: int) -> list[str]:
    """Returns what is wrong with the edges (from, to) of a cell."""
    last, problems = inputs + nodes - 1, []
    for source, target in dict.fromkeys(edges):
        where = f"edge [{source}, {target}]"
        if not inputs <= target <= last:
            problems.append(f"{where} does not end in an intermediate node ({inputs} to {last})")
        elif not 0 <= source < target:
            problems.append(f"{where} does not begin in an earlier state (0 to {target - 1})")
        if edges.count((source, target)) > 1:
            problems.append(f"{where} is listed twice")
    reached = {target for _, target in edges}
    return problems + [f"no edge leads to node {n}" for n in range(inputs, last + 1) if n not in reached]


def concat_problems(concat: Sequence[int], skeleton: Skeleton, nodes: int) -> list[str]:
    """Returns what is wrong with the nodes that make a cell's output."""
    inputs = skeleton.inputs
    last = inputs + nodes - 1
    if not skeleton.concatenates:
        good = list(concat) == [last]
        return [] if good else [f"concat must be [{last}]: a {skeleton.name} cell gives its last node"]
    problems = [] if concat else ["concat is empty"]
    for node in dict.fromkeys(concat):
        if not inputs <= node <= last:
            problems.append(f"concat names {node}, not an intermediate node ({inputs} to {last})")
        if list(concat).count(node) > 1:
            problems.append(f"concat names node {node} twice")
    return problems


def derivation_problems(
    rule: object, edges_per_node: object, exclude: Sequence[str], operations: Sequence[str]
) -> list[str]:
    """Returns what is wrong with a derivation rule for these operations."""
    problems = []
    if rule not in DERIVATIONS:
        known = f"not one of {', '.join(DERIVATIONS)}{meant(rule, DERIVATIONS)}"
        problems.append(f"derivation.rule is {quoted(rule)}, {known}")
    if rule == "top_edges" and not is_count(edges_per_node):
        problems.append(f"derivation.edges_per_node is {quoted(edges_per_node)}; top_edges needs a positive integer")
    if rule == "all_edges" and edges_per_node is not None:
        problems.append("derivation.edges_per_node has no meaning for all_edges, which keeps every edge")
    for name in dict.fromkeys(exclude):
        if operations is not None and name not in operations:
            hint = meant(name, operations)
            problems.append(f"derivation.exclude names {quoted(name)}, which is not among the operations{hint}")
    if operations and not set(operations) - set(exclude):
        problems.append("derivation.exclude leaves no operation to choose")
    return problems


def is_count(value: object) -> bool:
    """Returns whether `value` is a positive integer (True is not)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def space_problems(fields: Mapping[str, Any]) -> list[str]:
    """Returns everything that is wrong with a space.

    Args:
        fields: `name skeleton nodes operations edges concat rule edges_per_node exclude edge_operations`, of the right
            types; None stands for a field that is known to be bad already and cannot be checked further (and for no
            `edge_operations`).
    """
    problems = [] if fields["name"] is None else name_problems(fields["name"])
    skeleton, nodes, operations = fields["skeleton"], fields["nodes"], fields["operations"]
    if nodes is not None and (not is_count(nodes) or nodes > MAX_NODES):
        problems.append(f"nodes is {quoted(nodes)}, not an integer from 1 to {MAX_NODES}")
        nodes = None
    if operations is not None:
        problems += operation_problems(operations)
    if skeleton is not None and nodes is not None:
        if fields["edges"] is not None:
            problems += edge_problems(fields["edges"], skeleton.inputs, nodes)
        if fields["concat"] is not None:
            problems += concat_problems(fields["concat"], skeleton, nodes)
    by_edge = fields["edge_operations"]
    if by_edge is not None and skeleton is not None and fields["edges"] is not None:
        exclude = fields["exclude"] or ()
        problems += edge_operation_problems(by_edge, operations, exclude, skeleton.cells, fields["edges"])
    if fields["rule"] is not None:
        problems += derivation_problems(fields["rule"], fields["edges_per_node"], fields["exclude"] or (), operations)
    return problems
