"""Search spaces: which cells, edges and operations may exist, read from YAML and checked in full. Imports no torch."""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from nas_moreau.architecture.genotype import Cell, Genotype
from nas_moreau.errors import InputError

# Names that have an operation; `operations.register_operation` adds a user's. A dict, for its order.
KNOWN_OPERATIONS: dict[str, None] = dict.fromkeys((
    "none", "skip_connect", "max_pool_3x3", "avg_pool_3x3", "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7",
    "dil_conv_3x3", "dil_conv_5x5", "conv_7x1_1x7", "conv_3x1_1x3", "nor_conv_1x1", "nor_conv_3x3", "noise",
))  # fmt: skip

CELLS = {"darts": ("normal", "reduce"), "nas_bench_201": ("cell",)}
INPUTS = {"darts": 2, "nas_bench_201": 1}
RULES = ("top_edges", "argmax")
MAX_BYTES, MAX_NODES = 100_000, 16


class Derivation(NamedTuple):
    """How alphas become a genotype.

    `top_edges`: every node keeps its `edges_per_node` strongest edges, each with its strongest operation (DARTS).
    `argmax`: every edge keeps its strongest operation (NAS-Bench-201). `exclude`: operations that are never the result.
    """

    rule: str
    edges_per_node: int
    exclude: tuple[str, ...]


@dataclass(frozen=True)
class SearchSpace:
    """What may exist.

    Attributes:
        name: Name of the space, written into its genotypes.
        skeleton: "darts" or "nas_bench_201": how cells are stacked.
        nodes: Intermediate nodes of a cell.
        operations: Candidates of every edge, in the order of the alphas' columns.
        concat: Nodes whose outputs make the cell's output.
        derivation: How alphas become a genotype.
    """

    name: str
    skeleton: str
    nodes: int
    operations: tuple[str, ...]
    concat: tuple[int, ...]
    derivation: Derivation

    @property
    def cells(self) -> tuple[str, ...]:
        """Names of the cells: ("normal", "reduce") or ("cell",)."""
        return CELLS[self.skeleton]

    @property
    def inputs(self) -> int:
        """Number of input states of a cell."""
        return INPUTS[self.skeleton]

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """All edges (from, to), by node and then by source: the order of the alphas' rows."""
        return tuple((a, b) for b in range(self.inputs, self.inputs + self.nodes) for a in range(b))

    @property
    def alpha_shape(self) -> tuple[int, int]:
        """(edges, operations)."""
        return len(self.edges), len(self.operations)

    @property
    def choices(self) -> tuple[str, ...]:
        """Operations that can be the result of a derivation."""
        return tuple(name for name in self.operations if name not in self.derivation.exclude)

    def reduction_places(self, layers: int) -> tuple[int, ...]:
        """Returns the indices of the reduction cells among `layers` cells (none in the NAS-Bench-201 skeleton)."""
        return tuple(sorted({layers // 3, 2 * layers // 3})) if self.skeleton == "darts" else ()

    def size(self) -> int:
        """Returns how many different genotypes the derivation rule can give, all cells together."""
        kept = self.derivation.edges_per_node
        one = 1
        for node in range(self.inputs, self.inputs + self.nodes):
            count = node if self.derivation.rule == "argmax" else min(kept, node)
            one *= math.comb(node, count) * len(self.choices) ** count
        return one ** len(self.cells)

    def random_genotype(self, rng: random.Random) -> Genotype:
        """Returns a genotype drawn uniformly from those that the derivation rule can give."""
        cells = {}
        for name in self.cells:
            edges = []
            for node in range(self.inputs, self.inputs + self.nodes):
                count = node if self.derivation.rule == "argmax" else min(self.derivation.edges_per_node, node)
                edges += [(rng.choice(self.choices), source, node) for source in sorted(rng.sample(range(node), count))]
            cells[name] = Cell(tuple(edges), self.concat)
        return Genotype(self.name, cells)

    def check(self, genotype: Genotype) -> None:
        """Raises InputError when a genotype is not one of this space."""
        problems = []
        if set(genotype.cells) != set(self.cells):
            problems.append(f"it has the cells {', '.join(genotype.cells)}, not {', '.join(self.cells)}")
        else:
            for name, cell in genotype.cells.items():
                for operation, source, target in cell.edges:
                    if operation not in self.operations:
                        problems.append(f"{name} uses '{operation}'")
                    if (source, target) not in self.edges:
                        problems.append(f"{name} has an edge {source}-{target}")
        if problems:
            shown = "; ".join(dict.fromkeys(problems))
            raise InputError(f"The genotype is none of space '{self.name}': {shown}.", "Give the space it was found in.")


def check_operations(names: Iterable[str], where: str) -> None:
    """Raises InputError, with did-you-mean, when a name is not that of a known operation."""
    for name in names:
        if name not in KNOWN_OPERATIONS:
            near = difflib.get_close_matches(str(name), KNOWN_OPERATIONS, 1, 0.5)
            cure = f"Did you mean '{near[0]}'?" if near else f"Known are {', '.join(KNOWN_OPERATIONS)}."
            raise InputError(f"There is no operation '{name}' ({where}).", f"{cure} Your own come in with --import.")


def _folder() -> Path:
    """Returns where the built-in spaces lie: within the package (installed) or beside it (checkout)."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "search_spaces"
    return inside if inside.is_dir() else package.parent / "search_spaces"


def space_names() -> list[str]:
    """Returns the names of the built-in spaces."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def load_space(name_or_path: str | Path) -> SearchSpace:
    """Returns a built-in space by name, or one of your own by the path of its YAML file.

    Raises:
        InputError: There is no such space, or its file is wrong; all its problems are listed at once.
    """
    text = str(name_or_path)
    path = _folder() / f"{text}.yaml" if text in space_names() else Path(text)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES:,} bytes.", "Give a search space in YAML.")
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        near = difflib.get_close_matches(text, space_names(), 1, 0.5)
        cure = f"Did you mean '{near[0]}'?" if near else f"Give a path, or one of {', '.join(space_names())}."
        raise InputError(f"There is no search space '{text}'.", cure) from None
    return parse_space(content, str(path))


def parse_space(text: str, origin: str = "the search space") -> SearchSpace:
    """Returns the space that a YAML text describes.

    Raises:
        InputError: The text is wrong; all its problems are listed at once.
    """
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            raise InputError(f"{origin} uses YAML aliases.", "Write the values out.")
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        mark = getattr(error, "problem_mark", None)
        raise InputError(
            f"{origin} is not valid YAML{f' at line {mark.line + 1}' if mark else ''}.", "Mend that line."
        ) from None
    if not isinstance(data, dict):
        raise InputError(f"{origin} does not hold keys and values.", "Begin with 'name: ...'.")
    problems = _problems(data)
    if problems:
        raise InputError(f"{origin}: {'; '.join(problems)}.", "Mend these keys (nas-moreau show darts is an example).")
    skeleton, nodes = data["skeleton"], data["nodes"]
    rule = data.get("derivation") or {}
    last = INPUTS[skeleton] + nodes
    default = range(2, last) if skeleton == "darts" else (last - 1,)
    return SearchSpace(
        data["name"],
        skeleton,
        nodes,
        tuple(data["operations"]),
        tuple(sorted(data.get("concat") or default)),
        Derivation(
            rule.get("rule", "top_edges" if skeleton == "darts" else "argmax"),
            rule.get("edges_per_node", 2),
            tuple(rule.get("exclude", ["none"] if skeleton == "darts" else [])),
        ),
    )


_KEYS = ("name", "skeleton", "nodes", "operations", "concat", "derivation")


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _unknown(keys: Iterable[Any], known: Sequence[str], where: str) -> list[str]:
    found = []
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1, 0.5)
            found.append(f"'{where}{key}' is no key" + (f" (did you mean '{near[0]}'?)" if near else ""))
    return found


def _problems(data: dict[Any, Any]) -> list[str]:
    """Returns all that is wrong with a space's data, in words."""
    found = _unknown(data, _KEYS, "")
    found += [f"'{key}' is missing" for key in _KEYS[:4] if key not in data]
    if "name" in data and not (isinstance(data["name"], str) and 0 < len(data["name"]) <= 100):
        found.append("'name' is no text of 1 to 100 characters")
    skeleton = data.get("skeleton")
    if "skeleton" in data and (not isinstance(skeleton, str) or skeleton not in CELLS):
        found.append(f"'skeleton' is {skeleton!r}, not one of {', '.join(CELLS)}")
        skeleton = None
    nodes = data.get("nodes")
    if "nodes" in data and not _whole(nodes, 1, MAX_NODES):
        found.append(f"'nodes' is {nodes!r}, not an integer from 1 to {MAX_NODES}")
        nodes = None
    operations = data.get("operations")
    if "operations" in data:
        found += _operation_problems(operations)
    if data.get("concat") is not None and skeleton and nodes:
        concat, last = data["concat"], INPUTS[skeleton] + nodes - 1
        if not (isinstance(concat, list) and concat and all(_whole(n, INPUTS[skeleton], last) for n in concat)):
            found.append(f"'concat' is {concat!r}, not a list of nodes from {INPUTS[skeleton]} to {last}")
        elif len(set(concat)) < len(concat):
            found.append("'concat' names a node twice")
        elif skeleton == "nas_bench_201" and concat != [last]:
            found.append(f"'concat' of a nas_bench_201 skeleton is its last node, [{last}]")
    return found + _derivation_problems(data.get("derivation"), operations if _texts(operations) else [])


def _operation_problems(operations: Any) -> list[str]:
    if not _texts(operations) or not operations:
        return ["'operations' is not a list of names"]
    found = []
    for name in dict.fromkeys(operations):
        if operations.count(name) > 1:
            found.append(f"operation '{name}' stands twice")
        if name not in KNOWN_OPERATIONS:
            near = difflib.get_close_matches(name, KNOWN_OPERATIONS, 1, 0.5)
            found.append(
                f"there is no operation '{name}'"
                + (f" (did you mean '{near[0]}'?)" if near else " (your own come in with --import)")
            )
    return found


def _derivation_problems(rule: Any, operations: list[str]) -> list[str]:
    if rule is None:
        return []
    if not isinstance(rule, dict):
        return ["'derivation' does not hold keys and values"]
    found = _unknown(rule, Derivation._fields, "derivation.")
    if rule.get("rule", "argmax") not in RULES:
        found.append(f"'derivation.rule' is {rule['rule']!r}, not one of {', '.join(RULES)}")
    if not _whole(rule.get("edges_per_node", 2), 1, MAX_NODES):
        found.append(f"'derivation.edges_per_node' is {rule['edges_per_node']!r}, not a positive integer")
    exclude = rule.get("exclude", [])
    if not _texts(exclude):
        found.append("'derivation.exclude' is not a list of operations")
    elif operations and not set(operations) - set(exclude):
        found.append("'derivation.exclude' leaves no operation")
    return found
