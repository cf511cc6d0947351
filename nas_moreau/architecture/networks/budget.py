"""The best genotype whose network costs no more than allowed: the strongest weights under a budget.

The cost of a network is the sum of what its operations cost, so the choice is a knapsack: edges or nodes are decided
one after the other, and of the partial cells only those are carried on that no other one equals or beats in weight,
parameters and multiply-adds alike. That is exact. Where more than `WIDTH` of them are left, the strongest are carried
on (a beam), and the answer says so.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right, insort
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from nas_moreau.architecture.networks.counting import multiply_adds, parameter_count
from nas_moreau.architecture.networks.network import Network
from nas_moreau.architecture.spaces.alpha_table import AlphaTable, EdgeWeights
from nas_moreau.architecture.spaces.genotype import Cell, Genotype
from nas_moreau.architecture.spaces.space import SearchSpace
from nas_moreau.errors import InputError

WIDTH = 20_000

Cost = tuple[int, int]  # parameters, multiply-adds
Limits = tuple[float, float]  # the same, infinity for none


class Partial(NamedTuple):
    """A part of a genotype: the sum of its log weights, its cost, and its edges as (cell, operation, edge number)."""

    score: float
    cost: Cost
    edges: tuple[tuple[str, str, int], ...] = ()


class Fitting(NamedTuple):
    """The genotype, its sum of log weights and cost, and whether no other one that fits can have a larger sum."""

    genotype: Genotype
    score: float
    parameters: int
    macs: int
    exact: bool


def network_costs(
    space: SearchSpace,
    build: Callable[[Genotype], Network],
    input_size: tuple[int, int, int],
    operations: Sequence[str] | None = None,
) -> tuple[Cost, dict[tuple[str, int, str], Cost]]:
    """Returns what the network costs without any operation, and what each operation adds on each edge of each cell.

    Args:
        space: Cells, edges and operations.
        build: Makes the network of a genotype; called on the meta device, so that nothing is computed.
        input_size: (channels, height, width) of an image.
        operations: Which operations are asked for; by default those that the space's rule can choose.
    """
    # with `none` on its edges a cell is there and costs nothing
    empty = {cell: Cell((("none", 0, space.inputs),), space.concat) for cell in space.cells}

    def cost(cells: Mapping[str, Cell]) -> Cost:
        with torch.device("meta"):
            network = build(Genotype(space.name, cells))
        return parameter_count(network), multiply_adds(network, input_size)

    base = cost(empty)
    added: dict[tuple[str, int, str], Cost] = {}
    known: dict[tuple[str, bool, str], Cost] = {}
    for cell, (number, edge), name in itertools.product(
        space.cells, enumerate(space.edges), operations or space.choices
    ):
        # an operation costs the same on all edges that leave an input, and on all others
        key = (cell, edge[0] < space.inputs, name)
        if key not in known:
            whole = base if name == "none" else cost({**empty, cell: Cell(((name, *edge),), space.concat)})
            known[key] = (whole[0] - base[0], whole[1] - base[1])
        added[cell, number, name] = known[key]
    return base, added


def best_within(
    space: SearchSpace,
    table: AlphaTable,
    base: Cost,
    added: Mapping[tuple[str, int, str], Cost],
    max_parameters: int | None = None,
    max_macs: int | None = None,
    width: int = WIDTH,
) -> Fitting:
    """Returns the genotype with the largest sum of log weights of its operations that stays within both limits.

    Without a limit that is the genotype of the space's own rule (but for ties).

    Args:
        space: Rule, edges and operations.
        table: The weights of the search.
        base: From `network_costs`.
        added: From `network_costs`.
        max_parameters: Of the whole network.
        max_macs: Multiply-adds of one image.
        width: At most so many partial cells are carried on.

    Raises:
        InputError: No genotype of the space fits.
    """
    limits = (math.inf if max_parameters is None else max_parameters, math.inf if max_macs is None else max_macs)
    stages = [options for cell in space.cells for options in _choices(space, cell, table.cells[cell], added, limits)]
    # the least that the nodes still to come must cost
    least = [(0, 0)]
    for options in reversed(stages):
        parameters, macs = (min(option.cost[i] for option in options) for i in (0, 1))
        least.append((least[-1][0] + parameters, least[-1][1] + macs))
    least.reverse()
    states, exact = [Partial(0.0, base)], True
    for options, rest in zip(stages, least[1:]):
        room = (limits[0] - rest[0], limits[1] - rest[1])
        states = _pruned([_joined(state, option) for state in states for option in options], limits, room)
        exact &= len(states) <= width
        states = states[:width]
        if not states:
            raise InputError(_refusal(space, base, least[0], max_parameters, max_macs, exact), "Allow more.")
    best = states[0]
    cells = {
        cell: Cell(
            tuple((name, *space.edges[number]) for owner, name, number in best.edges if owner == cell), space.concat
        )
        for cell in space.cells
    }
    return Fitting(Genotype(space.name, cells), best.score, *best.cost, exact)


def _choices(
    space: SearchSpace,
    cell: str,
    rows: Sequence[EdgeWeights],
    added: Mapping[tuple[str, int, str], Cost],
    limits: Limits,
) -> list[list[Partial]]:
    """Returns what is to be decided about a cell, one after the other: an edge where all stay, else a node."""
    single = [
        [
            Partial(math.log(max(row.strength(name), 1e-300)), added[cell, i, name], ((cell, name, i),))
            for name in row.weights
            if name in space.choices
        ]
        for i, row in enumerate(rows)
    ]
    limit = space.derivation.edges_per_node
    if limit is None:
        return [_pruned(options, limits) for options in single]
    decided: list[list[Partial]] = []
    for into in space.incoming():
        options: list[Partial] = []
        for edges in itertools.combinations(into, min(limit, len(into))):
            partials = [Partial(0.0, (0, 0))]
            for i in edges:
                partials = _pruned([_joined(partial, option) for partial in partials for option in single[i]], limits)
            options += partials
        decided.append(_pruned(options, limits))
    return decided


def _joined(a: Partial, b: Partial) -> Partial:
    return Partial(a.score + b.score, (a.cost[0] + b.cost[0], a.cost[1] + b.cost[1]), a.edges + b.edges)


def _pruned(partials: list[Partial], limits: Limits, room: Limits = (math.inf, math.inf)) -> list[Partial]:
    """Returns those that have room and that none before them beats, the strongest first.

    What has no limit does not count.
    """
    front: list[tuple[float, float]] = []  # (parameters ascending, macs descending) of what is kept, undominated
    kept = []
    for partial in sorted(partials, key=lambda p: -p.score):
        a, b = (part if limit < math.inf else 0 for part, limit in zip(partial.cost, limits))
        if a > room[0] or b > room[1]:
            continue
        place = bisect_right(front, (a, math.inf))
        if place and front[place - 1][1] <= b:
            continue
        front[:] = [point for point in front if not (point[0] >= a and point[1] >= b)]
        insort(front, (a, b))
        kept.append(partial)
    return kept


def _refusal(
    space: SearchSpace, base: Cost, least: Cost, max_parameters: int | None, max_macs: int | None, exact: bool
) -> str:
    limits = [f"{max_parameters:,} parameters"] if max_parameters else []
    limits += [f"{max_macs:,} multiply-adds"] if max_macs else []
    said = f"No cell of the space '{space.name}' {'fits' if exact else 'was found that fits'} in {' and '.join(limits)}"
    return f"{said}; the least is {base[0] + least[0]:,} parameters and {base[1] + least[1]:,} multiply-adds."
