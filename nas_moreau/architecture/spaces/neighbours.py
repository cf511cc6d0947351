"""Genotypes that differ in one operation, and the candidates of a supernet that a genotype uses. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple

from nas_moreau.architecture.spaces.genotype import Cell, Genotype
from nas_moreau.architecture.spaces.space import SearchSpace

Chosen = dict[str, list[tuple[int, ...]]]
"""Cell name -> for every edge of the space the numbers of the chosen candidates."""


class Neighbour(NamedTuple):
    """A genotype and its difference from another: on `edge` of `cell` it has `operation` instead of `former`."""

    cell: str
    edge: tuple[int, int]
    former: str
    operation: str
    genotype: Genotype


def neighbours(space: SearchSpace, genotype: Genotype) -> list[Neighbour]:
    """Returns every genotype that differs in the operation of one edge.

    The edges stay. Operations that the derivation excludes are left out, as is `none`, which would remove an edge.

    Args:
        space: The space of `genotype`.
        genotype: The genotype that is changed.
    """
    found = []
    for name, cell in genotype.cells.items():
        for i, (former, source, target) in enumerate(cell.edges):
            for operation in space.edge_choices(name, space.edges.index((source, target))):
                if operation in (former, "none"):
                    continue
                edges = (*cell.edges[:i], (operation, source, target), *cell.edges[i + 1 :])
                changed = space.genotype({**genotype.cells, name: Cell(edges, cell.concat)})
                found.append(Neighbour(name, (source, target), former, operation, changed))
    return found


def chosen_operations(space: SearchSpace, genotype: Genotype) -> Chosen:
    """Returns the numbers of the operations that a genotype keeps among an edge's candidates, by cell and edge.

    Args:
        space: The space of `genotype`.
        genotype: The genotype.

    Raises:
        InputError: The genotype is not of this space.
    """
    space.check(genotype)
    return {
        name: [
            tuple(
                space.candidates(name, i).index(operation) for operation, *place in cell.edges if tuple(place) == edge
            )
            for i, edge in enumerate(space.edges)
        ]
        for name, cell in genotype.cells.items()
    }
