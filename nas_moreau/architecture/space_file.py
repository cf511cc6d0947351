"""Reads a search space's YAML file as plain data: bounded in size and depth, without aliases, tags or doubled keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from nas_moreau.architecture.known_operations import did_you_mean, shorten
from nas_moreau.architecture.space_rules import REDUCTION, SKELETONS, all_edges, is_count, space_problems
from nas_moreau.errors import InputError

MAX_BYTES, MAX_DEPTH = 64 * 1024, 8
KEYS = ("name", "skeleton", "nodes", "operations", "derivation", "edges", "concat", "reduction")
DERIVATION_KEYS = ("rule", "edges_per_node", "exclude")
CURE = "Correct the file; `nas-moreau show darts` prints a whole space."


def read_text(path: Path, what: str) -> str:
    """Returns the text of a small UTF-8 file.

    Raises:
        InputError: It is missing, no plain file, larger than 64 KiB, unreadable or not UTF-8.
    """
    try:
        if not path.is_file():
            reason = "is no plain file" if path.exists() else "does not exist"
            raise InputError(f"{what} {path} {reason}.", "Check the path.")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InputError(
                f"{what} {path} is larger than {MAX_BYTES // 1024} KiB.", "Check that it is the right file."
            )
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{what} {path} cannot be read: {error}.", "Check the file and its permissions.") from None


def parse_yaml(text: str, where: str) -> dict[Any, Any]:
    """Returns the mapping that a YAML text holds.

    Raises:
        InputError: The text is no YAML mapping, or is larger, deeper or more tangled than a space can be.
    """
    if len(text) > MAX_BYTES:
        raise InputError(f"{where} is larger than {MAX_BYTES // 1024} KiB.", CURE)
    try:
        depth = 0
        # events come one by one and build nothing, so that depth and aliases are known before anything is made of them
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise InputError(f"{where} is nested more than {MAX_DEPTH} deep.", CURE)
            if isinstance(event, yaml.AliasEvent):
                raise InputError(f"{where} uses a YAML alias (*{event.anchor}).", "Write the value out.")
        node = yaml.compose(text, yaml.SafeLoader)
        doubled = _doubled_keys(node)
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date, for one
        if isinstance(error, InputError):
            raise
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        line = f" (line {mark.line + 1})" if mark else ""
        raise InputError(f"{where} is no valid YAML: {reason}{line}.", CURE) from None
    if doubled:
        raise InputError(f"{where} has the key {', '.join(doubled)} twice.", "Keep one of them.")
    if not isinstance(data, dict):
        raise InputError(f"{where} holds {shorten(data)}, not a mapping of keys to values.", CURE)
    return data


def _doubled_keys(node: yaml.Node | None) -> list[str]:
    """Returns the keys that stand twice in one mapping, anywhere under `node` (its depth is bounded already)."""
    if isinstance(node, yaml.SequenceNode):
        return [key for child in node.value for key in _doubled_keys(child)]
    if not isinstance(node, yaml.MappingNode):
        return []
    keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    found = [shorten(key) for key in dict.fromkeys(keys) if keys.count(key) > 1]
    return found + [key for _, child in node.value for key in _doubled_keys(child)]


def space_fields(data: dict[Any, Any], where: str) -> dict[str, Any]:
    """Returns the checked fields of a space from its YAML mapping, defaults filled in.

    Args:
        data: Keys `name skeleton nodes operations derivation` and, optional, `edges concat reduction`.
        where: What messages call the mapping.

    Raises:
        InputError: Lists every problem of the mapping.
    """
    problems = [f"unknown key {shorten(key)}{did_you_mean(key, KEYS)}" for key in data if key not in KEYS]
    problems += [f"key '{key}' is missing" for key in KEYS[:5] if key not in data]

    def typed(key: str, value: Any, right: bool, wanted: str) -> Any:
        if not right:
            problems.append(f"{key} is {shorten(value)}, not {wanted}")
        return value if right else None

    fields: dict[str, Any] = {}
    for key in ("name", "skeleton"):
        fields[key] = typed(key, data[key], isinstance(data[key], str), "a string") if key in data else None
    fields["nodes"] = (
        typed("nodes", data["nodes"], is_count(data["nodes"]), "a positive integer") if "nodes" in data else None
    )
    operations: Any = data.get("operations", [])
    right = typed("operations", operations, _is_list(operations, str), "a list of names") is not None
    fields["operations"] = tuple(operations) if right and "operations" in data else None

    derivation = data.get("derivation")
    if "derivation" not in data or typed("derivation", derivation, isinstance(derivation, dict), "a mapping") is None:
        derivation = None
    fields.update({"rule": None, "edges_per_node": None, "exclude": ()})
    if derivation is not None:
        for key in derivation:
            if key not in DERIVATION_KEYS:
                problems.append(f"unknown key derivation.{str(key)[:60]}{did_you_mean(key, DERIVATION_KEYS)}")
        rule = derivation.get("rule")
        fields["rule"] = typed("derivation.rule", rule, isinstance(rule, str), "a string")
        fields["edges_per_node"] = derivation.get("edges_per_node")
        exclude = derivation.get("exclude", [])
        if typed("derivation.exclude", exclude, _is_list(exclude, str), "a list of operations") is not None:
            fields["exclude"] = tuple(exclude)

    fields["edges"], fields["concat"] = _cell_shape(data, fields, typed)
    if "reduction" in data:
        right = fields["skeleton"] == "darts" and data["reduction"] == REDUCTION
        wanted = "[1/3, 2/3], the places that the darts skeleton fixes for searching and retraining (no other has them)"
        typed("reduction", data["reduction"], right, wanted)
    problems += space_problems(fields)
    if problems:
        raise InputError(f"{where}: {'; '.join(problems)}.", CURE)
    return fields


def _cell_shape(data: dict[Any, Any], fields: dict[str, Any], typed: Any) -> tuple[Any, Any]:
    """Returns edges and concat (None where they are bad), by default every edge and the skeleton's output."""
    edges, concat = data.get("edges", "all"), data.get("concat", "all")
    if edges != "all" and typed("edges", edges, _is_edge_list(edges), "'all' or a list of [from, to]") is None:
        edges = None
    if concat != "all" and typed("concat", concat, _is_list(concat, int), "'all' or a list of nodes") is None:
        concat = None
    skeleton = SKELETONS.get(fields["skeleton"])
    if skeleton is None or fields["nodes"] is None or fields["nodes"] > 1000:
        return None, None
    first, last = skeleton.inputs, skeleton.inputs + fields["nodes"] - 1
    if edges == "all":
        edges = all_edges(first, fields["nodes"]) if fields["nodes"] <= 32 else None
    elif edges is not None:
        edges = tuple(sorted(((a, b) for a, b in edges), key=lambda edge: (edge[1], edge[0])))
    if concat == "all":
        concat = (last,) if fields["skeleton"] == "nas_bench_201" else tuple(range(first, last + 1))
    elif concat is not None:
        concat = tuple(sorted(concat))
    return edges, concat


def _is_list(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in value)


def _is_edge_list(value: object) -> bool:
    return isinstance(value, list) and all(_is_list(edge, int) and len(edge) == 2 for edge in value)
