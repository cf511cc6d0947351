"""Search spaces: which operations may stand on which edges, and how a genotype is chosen among them."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from os import PathLike
from pathlib import Path

from nas_moreau.architecture.spaces.genotype import Cell, Genotype
from nas_moreau.architecture.spaces.skeletons import Skeleton
from nas_moreau.architecture.spaces.space_file import CURE, parse_space, space_fields
from nas_moreau.architecture.spaces.space_rules import Place, space_problems
from nas_moreau.errors import InputError, meant, quoted
from nas_moreau.yaml_files import read_text


@dataclass(frozen=True)
class Derivation:
    """How a genotype follows from the weights of the operations.

    Args:
        rule: "top_edges" (DARTS: each node keeps its strongest edges) or "all_edges" (NAS-Bench-201: every edge
            stays).
        edges_per_node: For top_edges, how many incoming edges a node keeps (all, if it has fewer); None for all_edges.
        exclude: Operations that take part in the softmax and never in the result.
    """

    rule: str
    edges_per_node: int | None = None
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class SearchSpace:
    """The cells that may be found. States are numbered: the cell's inputs first, then its intermediate nodes.

    Args:
        name: Name of the space, which its genotypes contain.
        skeleton: The network around the cells; it fixes their names and the number of their input states.
        nodes: Intermediate nodes of a cell.
        operations: Candidates of every edge, in the order of the alphas' columns. Where edges differ
            (`edge_operations`): all of them, in the order in which the edges first name them.
        edges: (from, to), the alphas' rows: `to` ascending, then `from`.
        concat: Nodes whose concatenation is the cell's output (some skeletons: the last node alone).
        derivation: How alphas become a genotype.
        edge_operations: For every cell (in the order of the skeleton) and every edge its candidates, in the order of
            the alphas' columns; None where all edges have the same.

    Raises:
        InputError: Lists everything that is wrong.
    """

    name: str
    skeleton: Skeleton
    nodes: int
    operations: tuple[str, ...]
    edges: tuple[Place, ...]
    concat: tuple[int, ...]
    derivation: Derivation
    edge_operations: tuple[tuple[tuple[str, ...], ...], ...] | None = None

    def __post_init__(self) -> None:
        problems = space_problems(vars(self) | vars(self.derivation))
        if list(self.edges) != sorted(self.edges, key=lambda edge: (edge[1], edge[0])):
            problems.append("edges are not in canonical order (to ascending, then from)")
        if problems:
            raise InputError(f"Search space {quoted(self.name)}: {'; '.join(problems)}.", CURE)

    def __str__(self) -> str:
        count = len(self.operations) if self.edge_operations is None else self.alpha_shape[1]
        return (
            f"{self.name}: {self.size():,} genotypes ({', '.join(self.cells)}: {len(self.edges)} edges of "
            f"{count} operations)"
        )

    @property
    def cells(self) -> tuple[str, ...]:
        """Names of the cells to be found."""
        return self.skeleton.cells

    @property
    def inputs(self) -> int:
        """Number of input states of a cell."""
        return self.skeleton.inputs

    @property
    def alpha_shape(self) -> tuple[int, int]:
        """(edges, operations), the shape of each cell's logits; edges with fewer candidates leave columns unused."""
        rows = self.edge_operations or ()
        return len(self.edges), max((len(names) for row in rows for names in row), default=len(self.operations))

    @property
    def ragged(self) -> bool:
        """Whether some edges have fewer candidates than others, so that logits have unused columns."""
        return (
            self.edge_operations is not None and len({len(names) for row in self.edge_operations for names in row}) > 1
        )

    def candidates(self, cell: str, edge: int) -> tuple[str, ...]:
        """Returns the candidates of an edge, in the order of the alphas' columns.

        Args:
            cell: Name of the cell.
            edge: Number of the edge.
        """
        if self.edge_operations is None:
            return self.operations
        return self.edge_operations[self.cells.index(cell)][edge]

    def edge_choices(self, cell: str, edge: int) -> tuple[str, ...]:
        """Returns the candidates of an edge that a genotype may hold: those that the derivation does not exclude."""
        return tuple(name for name in self.candidates(cell, edge) if name not in self.derivation.exclude)

    def digest(self) -> str:
        """Returns 16 hexadecimal digits of everything in the space but its name."""
        rule = self.derivation
        content = [self.skeleton.name, self.operations, self.edges, self.concat, *vars(rule).values()]
        content += [] if self.edge_operations is None else [self.edge_operations]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def choices(self) -> tuple[str, ...]:
        """The operations that a genotype may hold: all that the derivation does not exclude."""
        return tuple(name for name in self.operations if name not in self.derivation.exclude)

    def incoming(self) -> list[list[int]]:
        """Returns, for every node, the numbers of the edges that enter it."""
        nodes = range(self.inputs, self.inputs + self.nodes)
        return [[i for i, (_, target) in enumerate(self.edges) if target == node] for node in nodes]

    def size(self) -> int:
        """Returns the number of distinct genotypes that derivation can produce.

        A cell has, for each node with incoming edges of c_1, ..., c_n choices of which k are kept, the sum over all
        sets of k edges of the products of their choices; with all_edges that is the product over all edges. All cells
        together: the product. Isomorphic cells count as often as they are written differently. NAS-Bench-201:
        5**6 = 15,625; DARTS, the published count: (180 * 7**8)**2, about 1.08e18.
        """
        return math.prod(
            _elementary_symmetric([len(self.edge_choices(cell, i)) for i in incoming], kept)
            for cell in self.cells
            for incoming, kept in self._kept()
        )

    def genotype(self, cells: Mapping[str, Cell]) -> Genotype:
        """Returns the genotype of this space with these cells."""
        return Genotype(self.name, cells, self.skeleton)

    def random_genotype(self, rng: random.Random) -> Genotype:
        """Returns a genotype drawn uniformly from the `size()` that derivation can produce."""
        cells = {}
        for name in self.cells:
            kept = [i for incoming, count in self._kept() for i in self._drawn(name, incoming, count, rng)]
            edges = ((rng.choice(self.edge_choices(name, i)), *self.edges[i]) for i in kept)
            cells[name] = Cell(tuple(edges), self.concat)
        return self.genotype(cells)

    def _drawn(self, cell: str, incoming: list[int], count: int, rng: random.Random) -> list[int]:
        """Returns the numbers of `count` edges, each set as probable as it has choices of operations."""
        choices = {i: len(self.edge_choices(cell, i)) for i in incoming}
        if len(set(choices.values())) == 1:
            return sorted(rng.sample(incoming, count))
        sets = list(itertools.combinations(incoming, count))
        return list(rng.choices(sets, [math.prod(choices[i] for i in edges) for edges in sets])[0])

    def check(self, genotype: Genotype) -> None:
        """Raises InputError, naming every difference, when derivation in this space cannot produce `genotype`."""
        problems = []
        if genotype.space != self.name:
            problems.append(f"it is of space '{genotype.space}'")
        if genotype.skeleton != self.skeleton:
            problems.append(f"it has the skeleton {genotype.skeleton}, not {self.skeleton}")
        if set(genotype.cells) != set(self.cells):
            problems.append(f"it has the cells {', '.join(genotype.cells)}, not {', '.join(self.cells)}")
        else:
            problems += [p for name in self.cells for p in self._cell_problems(name, genotype)]
        if problems:
            raise InputError(
                f"The genotype {genotype.digest()} does not belong to the search space '{self.name}': "
                f"{'; '.join(problems)}.",
                "Use the space it was found in, or a genotype of this one.",
            )

    def _cell_problems(self, name: str, genotype: Genotype) -> Iterable[str]:
        cell = genotype.cells[name]
        for operation in dict.fromkeys(edge[0] for edge in cell.edges):
            if operation not in self.choices:
                hint = meant(operation, self.choices)
                yield f"cell {name} holds '{operation}', which cannot be chosen here{hint}"
        for operation, source, target in dict.fromkeys(cell.edges):
            if (source, target) not in self.edges:
                yield f"cell {name} has an edge from {source} to {target}"
                continue
            choices = self.edge_choices(name, self.edges.index((source, target)))
            if operation in self.choices and operation not in choices:
                yield f"cell {name} holds '{operation}' on edge {source}-{target}, which has {', '.join(choices)}"
        for node, (incoming, count) in enumerate(self._kept(), self.inputs):
            sources = [source for _, source, target in cell.edges if target == node]
            if len(sources) != count or len(set(sources)) != count:
                found = f"{len(sources)} edges from {len(set(sources))} places"
                yield f"node {node} of cell {name} has {found}, not {count} of {len(incoming)}"
        if cell.concat != tuple(sorted(self.concat)):
            yield f"cell {name} concatenates {list(cell.concat)}, not {list(self.concat)}"

    def _kept(self) -> list[tuple[list[int], int]]:
        """Returns, for every node, the numbers of its incoming edges and how many of them a genotype keeps."""
        limit = self.derivation.edges_per_node
        return [(into, len(into) if limit is None else min(limit, len(into))) for into in self.incoming()]


def _elementary_symmetric(values: list[int], degree: int) -> int:
    """Returns the sum over all sets of `degree` values of their products."""
    sums = [1] + [0] * degree
    for value in values:
        for k in range(degree, 0, -1):
            sums[k] += value * sums[k - 1]
    return sums[degree]


def _space_from(text: str, where: str) -> SearchSpace:
    fields = space_fields(parse_space(text, where), where)
    rule = Derivation(fields.pop("rule"), fields.pop("edges_per_node"), fields.pop("exclude"))
    return SearchSpace(derivation=rule, **fields)


@cache
def _built_in() -> dict[str, Path]:
    package = Path(__file__).resolve().parents[2]
    # inside the package when installed from a wheel, beside it in a checkout
    for folder in (package / "search_spaces", package.parent / "search_spaces"):
        if found := sorted(folder.glob("*.yaml")):
            return {path.stem: path for path in found}
    return {}


def space_names() -> list[str]:
    """Returns the names of the built-in search spaces."""
    return list(_built_in())


def load_space(name_or_path: str | PathLike[str]) -> SearchSpace:
    """Returns a built-in search space by name, or the one that a YAML file describes.

    Args:
        name_or_path: A name such as "darts", or the path of a file ending in .yaml or .yml.

    Raises:
        InputError: The name is unknown, or the file is invalid: all its problems are listed together.
    """
    built_in, name = _built_in(), str(name_or_path)
    if name in built_in:
        return _space_from(read_text(built_in[name], "Search space"), f"Search space {name}")
    if not name.endswith((".yaml", ".yml")):
        raise InputError(
            f"Unknown search space {quoted(name)}{meant(name, built_in)}.",
            f"Give one of {', '.join(built_in)}, or the path of a file that ends in .yaml.",
        )
    space = _space_from(read_text(Path(name), "Search space"), f"Search space {name}")
    # a genotype contains only the name of its space, so two spaces must not have the same name
    if space.name in built_in and space != load_space(space.name):
        raise InputError(
            f"Search space {name} has the name '{space.name}' of a built-in space and differs from it.",
            "Give it another name.",
        )
    return space
