"""Reads a search space's YAML file: every field checked, all problems reported together."""

from __future__ import annotations

from typing import Any

from nas_moreau.architecture.spaces.skeletons import SKELETONS
from nas_moreau.architecture.spaces.space_rules import all_edges, all_operations, is_count, space_problems
from nas_moreau.errors import InputError, meant, quoted
from nas_moreau.yaml_files import parse_yaml

KEYS = ("name", "skeleton", "nodes", "operations", "derivation", "edges", "concat")
REQUIRED = KEYS[:5]
DERIVATION_KEYS = ("rule", "edges_per_node", "exclude")
CURE = "Correct the file; `nas-moreau show darts` prints a whole space."


def parse_space(text: str, where: str) -> dict[Any, Any]:
    """Returns the mapping that a space's YAML text holds.

    Raises:
        InputError: The text is not a YAML mapping, or is larger or deeper than a space can be.
    """
    data = parse_yaml(text, where, CURE)
    if not isinstance(data, dict):
        raise InputError(f"{where} holds {quoted(data)}, not a mapping of keys to values.", CURE)
    return data


def space_fields(data: dict[Any, Any], where: str) -> dict[str, Any]:
    """Returns the checked fields of a space from its YAML mapping, defaults filled in.

    Args:
        data: Keys `name skeleton nodes operations derivation` and, optional, `edges concat` and the constants of the
            skeleton. `operations`: a list for all edges, or a mapping of every cell to such a list or to a mapping of
            every edge ("0-2") to its own.
        where: What messages call the mapping.

    Raises:
        InputError: Lists every problem of the mapping.
    """
    skeleton = SKELETONS.get(data["skeleton"]) if isinstance(data.get("skeleton"), str) else None
    # a constant of some skeleton is a known key, but invalid for the other skeletons
    constants = {key for known in SKELETONS.values() for key, _ in known.constants}
    known = (*KEYS, *constants)
    problems = [f"unknown key {quoted(key)}{meant(key, known)}" for key in data if key not in known]
    problems += [f"key '{key}' is missing" for key in REQUIRED if key not in data]

    def typed(key: str, value: Any, right: bool, wanted: str) -> Any:
        if not right:
            problems.append(f"{key} is {quoted(value)}, not {wanted}")
        return value if right else None

    fields: dict[str, Any] = {}
    fields["name"] = typed("name", data["name"], isinstance(data["name"], str), "a string") if "name" in data else None
    fields["skeleton"] = skeleton
    if "skeleton" in data and skeleton is None:
        names = f"one of {', '.join(SKELETONS)}{meant(data['skeleton'], SKELETONS)}"
        typed("skeleton", data["skeleton"], False, names)
    fields["nodes"] = (
        typed("nodes", data["nodes"], is_count(data["nodes"]), "a positive integer") if "nodes" in data else None
    )
    derivation = data.get("derivation")
    if "derivation" not in data or typed("derivation", derivation, isinstance(derivation, dict), "a mapping") is None:
        derivation = None
    fields.update({"rule": None, "edges_per_node": None, "exclude": ()})
    if derivation is not None:
        for key in derivation:
            if key not in DERIVATION_KEYS:
                problems.append(f"unknown key derivation.{str(key)[:60]}{meant(key, DERIVATION_KEYS)}")
        rule = derivation.get("rule")
        fields["rule"] = typed("derivation.rule", rule, isinstance(rule, str), "a string")
        fields["edges_per_node"] = derivation.get("edges_per_node")
        exclude = derivation.get("exclude", [])
        if typed("derivation.exclude", exclude, _is_list(exclude, str), "a list of operations") is not None:
            fields["exclude"] = tuple(exclude)

    fields["edges"], fields["concat"] = _cell_shape(data, fields, typed)
    fields["operations"], fields["edge_operations"] = _operations(data, fields, problems)
    fixed = dict(skeleton.constants) if skeleton is not None else {}
    for key in constants & set(data):
        value = fixed.get(key)
        right = value is not None and data[key] == list(value)
        typed(key, data[key], right, "what the skeleton fixes" if value is None else f"[{', '.join(value)}]")
    problems += space_problems(fields)
    if problems:
        raise InputError(f"{where}: {'; '.join(problems)}.", CURE)
    return fields


def _operations(data: dict[Any, Any], fields: dict[str, Any], problems: list[str]) -> tuple[Any, Any]:
    """Returns `operations` and `edge_operations`, None where bad; the latter is None too where no edge differs."""
    given: Any = data.get("operations", [])
    if not isinstance(given, dict):
        if not _is_list(given, str):
            problems.append(f"operations is {quoted(given)}, not a list of names")
        return (tuple(given), None) if _is_list(given, str) and "operations" in data else (None, None)
    skeleton, edges = fields["skeleton"], fields["edges"]
    if skeleton is None or edges is None:
        return None, None
    names = [f"{a}-{b}" for a, b in edges]
    found = [f"operations names {quoted(key)}, not a cell" for key in given if key not in skeleton.cells]
    tables: dict[str, dict[str, Any]] = {}
    for cell in skeleton.cells:
        rows, where = given.get(cell, {}), f"operations.{cell}"
        tables[cell] = rows = rows if isinstance(rows, dict) else dict.fromkeys(names, rows)
        if cell not in given:
            found.append(f"{where} is missing")
        for key in rows:
            if key not in names:
                found.append(f"{where} names {quoted(key)}, not an edge of the cell{meant(key, names)}")
        for name in names if cell in given else ():
            if not _is_list(rows.get(name), str):
                found.append(f"{where}.{name} is {quoted(rows.get(name))}, not a list of names")
    problems += found
    if found:
        return None, None
    by_edge = tuple(tuple(tuple(tables[cell][name]) for name in names) for cell in skeleton.cells)
    return all_operations(by_edge), by_edge


def _cell_shape(data: dict[Any, Any], fields: dict[str, Any], typed: Any) -> tuple[Any, Any]:
    """Returns edges and concat (None where they are bad), by default every edge and the skeleton's output."""
    edges, concat = data.get("edges", "all"), data.get("concat", "all")
    if edges != "all" and typed("edges", edges, _is_edge_list(edges), "'all' or a list of [from, to]") is None:
        edges = None
    if concat != "all" and typed("concat", concat, _is_list(concat, int), "'all' or a list of nodes") is None:
        concat = None
    skeleton = fields["skeleton"]
    if skeleton is None or fields["nodes"] is None or fields["nodes"] > 1000:
        return None, None
    first, last = skeleton.inputs, skeleton.inputs + fields["nodes"] - 1
    if edges == "all":
        edges = all_edges(first, fields["nodes"]) if fields["nodes"] <= 32 else None
    elif edges is not None:
        edges = tuple(sorted(((a, b) for a, b in edges), key=lambda edge: (edge[1], edge[0])))
    if concat == "all":
        concat = tuple(range(first, last + 1)) if skeleton.concatenates else (last,)
    elif concat is not None:
        concat = tuple(sorted(concat))
    return edges, concat


def _is_list(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)


def _is_edge_list(value: object) -> bool:
    return isinstance(value, list) and all(_is_list(edge, int) and len(edge) == 2 for edge in value)
