"""Genotypes as other programs print them: `Genotype(normal=...)`, the same as a dict, NAS-Bench-201 strings.

A printed genotype is Python source, and nothing here runs Python: the text is cut into tokens of a closed list and read
by a grammar of strings, numbers, lists, tuples, dicts and the calls `Genotype(...)`, `range(...)` and `np.int64(...)`.
Length and depth are bounded, so that no text takes long or exhausts the stack (Python's own parser promises no such
thing).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from nas_moreau.errors import InputError, meant, quoted

MAX_DEPTH, MAX_NODES = 8, 64
Edge = tuple[str, int, int]
CURE = "Give genotype.json, Genotype(normal=[...], normal_concat=..., reduce=[...], reduce_concat=...), or |op~0|+..."
FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<text>'[^'\\\n]{0,100}'|"[^"\\\n]{0,100}")
      | (?P<number>[+-]?\d{1,19}(?:\.\d{0,30})?(?:[eE][+-]?\d{1,3})?)
      | (?P<name>[A-Za-z_][A-Za-z0-9_]{0,60}(?:\.[A-Za-z0-9_]{1,60})?)
      | (?P<sign>[()\[\]{},=:])
    )""",
    re.VERBOSE | re.ASCII,
)
# what precedes the call in source files and in the logs of searches: "DARTS_V2 = ", "03/21 10:11:12 AM genotype = "
_PREFIX = re.compile(r"[0-9/:,. -]{0,40}(?:[AP]M +)?\w{1,60} *[=:] *(?=Genotype\()", re.ASCII)
_PAIR_OF_201 = re.compile(r"([A-Za-z0-9_]{1,60})~(\d{1,2})", re.ASCII)
_INTEGERS = {f"{module}.{name}" for module in ("np", "numpy") for name in ("int64", "int32", "int_", "intp")}


class _Reader:
    """Reads one value from the tokens of a text."""

    def __init__(self, text: str):
        self.tokens = list(_tokens(text))
        self.place = 0

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.place] if self.place < len(self.tokens) else ("end", "the end")

    def take(self, sign: str = "") -> tuple[str, str]:
        kind, token = self.peek()
        if sign and (kind, token) != ("sign", sign):
            raise _refused(f"'{sign}' was expected before {quoted(token)}")
        self.place += 1
        return kind, token

    def follows(self, sign: str) -> bool:
        return self.peek() == ("sign", sign)

    def value(self, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise _refused(f"it is nested more than {MAX_DEPTH} deep")
        kind, token = self.take()
        if kind == "text":
            return token[1:-1]
        if kind == "number":
            return int(token) if re.fullmatch(r"[+-]?\d+", token) else float(token)
        if kind == "name":
            return self.call(token, depth)
        if kind == "sign" and token in "([":
            return self.sequence(")" if token == "(" else "]", depth)
        if kind == "sign" and token == "{":
            return self.pairs("}", ":", depth)
        raise _refused(f"{quoted(token)} stands where a value was expected")

    def sequence(self, end: str, depth: int) -> Any:
        """Returns a list; a lone value in parentheses is that value, as in Python."""
        values, comma = [], False
        while not self.follows(end):
            values.append(self.value(depth + 1))
            if comma := self.follows(","):
                self.take()
            elif not self.follows(end):
                raise _refused(f"a comma was expected before {quoted(self.peek()[1])}")
        self.take(end)
        return values[0] if end == ")" and len(values) == 1 and not comma else values

    def pairs(self, end: str, between: str, depth: int) -> dict[str, Any]:
        """Returns the fields of a dict (`'name': value`) or of a call (`name=value`, or by position)."""
        fields: dict[str, Any] = {}
        while not self.follows(end):
            kind, key = self.peek()
            named = kind == ("text" if between == ":" else "name") and self.tokens[self.place + 1 : self.place + 2] == [
                ("sign", between)
            ]
            if named:
                self.take()
                self.take(between)
                key = key.strip("'\"")
            elif between == ":" or len(fields) >= len(FIELDS):
                raise _refused(f"{quoted(key)} stands where a field was expected")
            else:
                key = FIELDS[len(fields)]
            if key not in FIELDS:
                raise _refused(f"it has an unknown field {quoted(key)}{meant(key, FIELDS)}")
            if key in fields:
                raise _refused(f"it has the field {key} twice")
            fields[key] = self.value(depth + 1)
            if not self.follows(end):
                self.take(",")
        self.take(end)
        return fields

    def call(self, name: str, depth: int) -> Any:
        if not self.follows("("):
            raise _refused(f"{quoted(name)} is not a value")
        self.take("(")
        if name == "Genotype" and depth == 0:
            return self.pairs(")", "=", depth)
        if name != "range" and name not in _INTEGERS:
            raise _refused(f"it calls {quoted(name)}, and only Genotype and range are read")
        bounds = self.sequence(")", depth)
        if name != "range":
            return bounds if is_whole(bounds) else [bounds]
        bounds = bounds if isinstance(bounds, list) else [bounds]
        if not (1 <= len(bounds) <= 2 and all(is_whole(b) and 0 <= b <= 2 * MAX_NODES for b in bounds)):
            raise _refused("its range is not one or two small numbers")
        return list(range(*bounds))


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    text, place = text.rstrip(), 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if not match:
            raise _refused(f"it cannot be read from {quoted(text[place : place + 20])} on")
        assert match.lastgroup is not None
        yield match.lastgroup, match[match.lastgroup]
        place = match.end()


def _refused(why: str) -> InputError:
    return InputError(f"The text is not a genotype: {why}.", CURE)


def is_whole(value: object) -> bool:
    """Returns whether `value` is an integer (True is not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def read_printed(text: str) -> dict[str, tuple[list[Edge], list[int]]]:
    """Returns cell name -> (edges, concat) of a printed `Genotype(...)` or dict of its fields.

    Raises:
        InputError: The text is not of this form.
    """
    prefix = _PREFIX.match(text)
    reader = _Reader(text[prefix.end() :] if prefix else text)
    fields = reader.value()
    if not isinstance(fields, dict):
        raise _refused("it is a value of another kind")
    if reader.peek()[0] != "end":
        raise _refused(f"{quoted(reader.peek()[1])} follows its end")
    if missing := [name for name in FIELDS if name not in fields]:
        raise _refused(f"it has no {', '.join(missing)}")
    cells = {}
    for name in ("normal", "reduce"):
        concat = fields[f"{name}_concat"]
        concat = [concat] if is_whole(concat) else concat
        if not isinstance(concat, list) or not all(is_whole(node) for node in concat):
            raise _refused(f"{name}_concat is not a list of nodes")
        cells[name] = (_edges(fields[name], name), concat)
    return cells


def _edges(value: Any, name: str) -> list[Edge]:
    """Returns the edges of a flat list (two pairs for each node) or of one with a list of pairs for each node."""
    if not isinstance(value, list) or not value:
        raise _refused(f"{name} is not a list of (operation, from) pairs")
    if all(_is_pair(item) for item in value):
        if len(value) % 2:
            raise _refused(f"{name} lists {len(value)} pairs, which are not two for each node")
        value = [value[i : i + 2] for i in range(0, len(value), 2)]
    if len(value) > MAX_NODES:
        raise _refused(f"{name} has {len(value)} nodes, more than {MAX_NODES}")
    edges: list[Edge] = []
    for node, group in enumerate(value, 2):
        # `(('skip_connect', 0))` is how a node of one edge comes out when the comma is forgotten
        group = [group] if _is_pair(group) else group
        if not isinstance(group, list) or not all(_is_pair(pair) for pair in group):
            raise _refused(f"node {node} of {name} is not a list of (operation, from) pairs")
        edges += [(pair[0], pair[1], node) for pair in group]
    return edges


def _is_pair(item: Any) -> bool:
    """Returns whether item is (operation, from); some searches print the edge's weight as a third value."""
    return (
        isinstance(item, list)
        and len(item) in (2, 3)
        and isinstance(item[0], str)
        and is_whole(item[1])
        and (len(item) == 2 or isinstance(item[2], int | float))
    )


def read_nas_bench_201(text: str) -> tuple[list[Edge], list[int]]:
    """Returns (edges, concat) of a string such as `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`, any number of nodes.

    Raises:
        InputError: The text is not of this form.
    """
    groups = text.split("+")
    if len(groups) > MAX_NODES:
        raise _refused(f"it has {len(groups)} nodes, more than {MAX_NODES}")
    edges: list[Edge] = []
    for node, group in enumerate(groups, 1):
        inner = group.strip()
        pairs = inner[1:-1].split("|") if len(inner) > 2 and inner[0] == inner[-1] == "|" else []
        matches = [_PAIR_OF_201.fullmatch(pair) for pair in pairs]
        found = sorted((int(match[2]), match[1]) for match in matches if match)
        if len(found) != len(pairs) or [source for source, _ in found] != list(range(node)):
            raise _refused(
                f"node {node} of the NAS-Bench-201 string is not |op~0|..., one operation from each of {node}"
            )
        edges += [(operation, source, node) for source, operation in found]
    return edges, [len(groups)]


def write_nas_bench_201(by_place: Mapping[tuple[int, int], str], nodes: int) -> str:
    """Returns the string of a cell with `nodes` nodes, given the operation of every edge (from, to)."""
    return "+".join("|" + "".join(f"{by_place[a, b]}~{a}|" for a in range(b)) for b in range(1, nodes + 1))
