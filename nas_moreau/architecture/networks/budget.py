"""The best genotype whose network costs no more than allowed: the strongest weights under a budget.

The cost of a network is the sum of the costs of its operations, so the choice is a knapsack: edges or nodes are decided
one after the other, and a partial cell is dropped if another one is at least as good in weight, parameters and
multiply-adds. That is exact. If more than `WIDTH` partial cells are left, the strongest are kept (a beam), and the
result says so.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nas_moreau.architecture.networks.costs import BuildNetwork, Cost, network_costs
from nas_moreau.architecture.spaces.alpha_table import AlphaTable, EdgeWeights
from nas_moreau.architecture.spaces.genotype import Cell, Genotype
from nas_moreau.architecture.spaces.space import SearchSpace
from nas_moreau.errors import InputError

WIDTH = 20_000
"""Largest number of partial cells that are kept."""
SMALLEST = 1e-300
"""Weights below this count as this, so that the logarithm of a weight that vanished is finite."""

Limits = tuple[float, float]
"""Parameters and multiply-adds, infinity for no limit."""


class Partial(NamedTuple):
    """A part of a genotype: the sum of its log weights, its cost, and its edges as (cell, operation, edge number)."""

    score: float
    cost: Cost
    edges: tuple[tuple[str, str, int], ...] = ()


class Fitting(NamedTuple):
    """A genotype within a budget.

    Attributes:
        genotype: The genotype.
        score: The sum of the log weights of its operations.
        parameters: Of its network.
        macs: Multiply-adds of its network for one image.
        exact: Whether no other genotype within the budget can have a larger score.
    """

    genotype: Genotype
    score: float
    parameters: int
    macs: int
    exact: bool


@dataclass(frozen=True)
class Budget:
    """What the network of a genotype may cost.

    Args:
        space: Rule, edges and operations.
        base: Cost of the network without any operation.
        added: (cell, edge number, operation) -> what the operation adds there.
        max_parameters: Largest number of parameters of the whole network; None for no limit.
        max_macs: Largest number of multiply-adds for one image; None for no limit.
    """

    space: SearchSpace
    base: Cost
    added: Mapping[tuple[str, int, str], Cost]
    max_parameters: int | None = None
    max_macs: int | None = None

    @classmethod
    def measure(
        cls,
        space: SearchSpace,
        build: BuildNetwork,
        input_size: tuple[int, int, int],
        max_parameters: int | None = None,
        max_macs: int | None = None,
    ) -> Budget:
        """Returns the budget with the costs of the networks that `build` makes; see `costs.network_costs`."""
        return cls(space, *network_costs(space, build, input_size), max_parameters, max_macs)

    def fits(self, genotype: Genotype) -> bool:
        """Returns whether the network of a genotype of the space stays within the limits."""
        used = [
            self.added[name, self.space.edges.index((source, target)), operation]
            for name, cell in genotype.cells.items()
            for operation, source, target in cell.edges
        ]
        return all(self.base[i] + sum(cost[i] for cost in used) <= limit for i, limit in enumerate(self._limits()))

    def best(self, table: AlphaTable, width: int = WIDTH) -> Fitting:
        """Returns the genotype with the largest sum of log weights of its operations that stays within the limits.

        Without a limit that is the genotype of the space's own rule (but for ties).

        Args:
            table: The weights of the search.
            width: Largest number of partial cells that are kept.

        Raises:
            InputError: No genotype of the space fits.
        """
        space, limits = self.space, self._limits()
        stages = [options for cell in space.cells for options in self._options(cell, table.cells[cell])]
        # the least cost of the decisions that are left
        least = [(0, 0)]
        for options in reversed(stages):
            parameters, macs = (min(option.cost[i] for option in options) for i in (0, 1))
            least.append((least[-1][0] + parameters, least[-1][1] + macs))
        least.reverse()
        states, exact = [Partial(0.0, self.base)], True
        for options, rest in zip(stages, least[1:]):
            room = (limits[0] - rest[0], limits[1] - rest[1])
            states = _pruned([_joined(state, option) for state in states for option in options], limits, room)
            exact &= len(states) <= width
            states = states[:width]
            if not states:
                raise InputError(self._refusal(least[0], exact), "Allow more.")
        best = states[0]
        cells = {
            cell: Cell(
                tuple((name, *space.edges[number]) for owner, name, number in best.edges if owner == cell), space.concat
            )
            for cell in space.cells
        }
        return Fitting(space.genotype(cells), best.score, *best.cost, exact)

    def record(self, found: Fitting) -> dict[str, Any]:
        """Returns plain data on the limits and on the genotype that `best` found."""
        return {
            "max_parameters": self.max_parameters,
            "max_macs": self.max_macs,
            "log_weight": found.score,
            "parameters": found.parameters,
            "macs": found.macs,
            "exact": found.exact,
        }

    def _limits(self) -> Limits:
        parameters, macs = (math.inf if limit is None else limit for limit in (self.max_parameters, self.max_macs))
        return parameters, macs

    def _options(self, cell: str, rows: Sequence[EdgeWeights]) -> list[list[Partial]]:
        """Returns the decisions of a cell, one after the other (an edge where all stay, else a node), as options."""
        space, limits = self.space, self._limits()
        single = [
            [
                Partial(math.log(max(row.strength(name), SMALLEST)), self.added[cell, i, name], ((cell, name, i),))
                for name in row.weights
                if name in space.edge_choices(cell, i)
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
                    joined = [_joined(partial, option) for partial in partials for option in single[i]]
                    partials = _pruned(joined, limits)
                options += partials
            decided.append(_pruned(options, limits))
        return decided

    def _refusal(self, least: Cost, exact: bool) -> str:
        limits = [f"{self.max_parameters:,} parameters"] if self.max_parameters else []
        limits += [f"{self.max_macs:,} multiply-adds"] if self.max_macs else []
        found = "fits" if exact else "was found that fits"
        parameters, macs = (base + rest for base, rest in zip(self.base, least))
        return (
            f"No cell of the space '{self.space.name}' {found} in {' and '.join(limits)}; the least is {parameters:,} "
            f"parameters and {macs:,} multiply-adds."
        )


def _joined(a: Partial, b: Partial) -> Partial:
    return Partial(a.score + b.score, (a.cost[0] + b.cost[0], a.cost[1] + b.cost[1]), a.edges + b.edges)


def _pruned(partials: list[Partial], limits: Limits, room: Limits = (math.inf, math.inf)) -> list[Partial]:
    """Returns those within `room` that no stronger one dominates in cost, the strongest first.

    A cost without a limit is ignored.
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
