"""The choices of the strongest weights that keep limits on parameters, multiply-adds or latency."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from nas_moreau.architecture import AlphaTable
from nas_moreau.errors import InputError, quoted
from nas_moreau.modules.cost_table import Costs

WIDTH = 5_000
"""Largest number of partial choices that are kept; fewer decisions than that makes are chosen exactly."""
SMALLEST = 1e-300
"""Weights below this count as this."""


def check_limits(given: Mapping[str, float | None]) -> dict[str, float]:
    """Returns the limits that are given: cost -> maximum.

    Args:
        given: `max_parameters`, `max_macs`, `max_ms`; None for no limit.

    Raises:
        InputError: A limit is not a positive number.
    """
    found = {}
    for name, value in given.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise InputError(f"{name} is {quoted(value)}.", "Give a positive number.")
        found[name.removeprefix("max_")] = value
    return found


class _Partial(NamedTuple):
    score: float
    picks: dict[str, int]


class Limited:
    """Choices within limits.

    Args:
        costs: Of the options.
        limits: Cost ("parameters", "macs", "ms") -> maximum for the whole module.
    """

    def __init__(self, costs: Costs, limits: Mapping[str, float]):
        self.costs, self.limits = costs, dict(limits)

    def keeps(self, picks: Mapping[str, int]) -> bool:
        """Returns whether the module of these choices keeps the limits."""
        found = self.costs.of(picks)
        return all(found[kind] <= limit for kind, limit in self.limits.items())

    def pick(self, table: AlphaTable) -> dict[str, int]:
        """Returns the choices of the largest sum of log weights that keep the limits.

        The decisions are taken one after the other; of partial choices those are kept which can still keep the limits,
        and of these the `WIDTH` strongest.

        Args:
            table: The weights.

        Raises:
            InputError: No choices were found that keep the limits.
        """
        rows = {name: list(row.weights.values()) for name, (row,) in table.cells.items()}
        states = [_Partial(0.0, {})]
        for name, weights in rows.items():
            states = [
                _Partial(state.score + math.log(max(weight, SMALLEST)), {**state.picks, name: number})
                for state in states
                for number, weight in enumerate(weights)
            ]
            states = [state for state in states if self._may_keep(state.picks)]
            # sorting is stable: among equals the first options
            states = sorted(states, key=lambda state: -state.score)[:WIDTH]
            if not states:
                raise InputError(self._refusal(), "Allow more, or add cheaper options.")
        return states[0].picks

    def _may_keep(self, picks: Mapping[str, int]) -> bool:
        """Returns whether the least cost of what is left lets partial choices keep the limits."""
        return all(self._least(picks, kind) <= limit for kind, limit in self.limits.items())

    def _least(self, picks: Mapping[str, int], kind: str) -> float:
        """Returns a bound from below of the cost of all choices that begin with these."""
        costs = self.costs
        total = getattr(costs.table.base, kind)
        undecided: dict[str, list[float]] = {}
        for path, name in costs.places.paths.items():
            known = [(costs.places.paths[parent], holding) for parent, holding in costs.parents[path]]
            if any(parent in picks and picks[parent] not in holding for parent, holding in known):
                continue
            each = [getattr(cost, kind) for cost in costs.table.options[path]]
            if name in picks:
                if all(parent in picks for parent, _ in known):
                    total += each[picks[name]]
            elif all(parent in picks for parent, _ in known):
                before = undecided.get(name, [0.0] * len(each))
                undecided[name] = [a + b for a, b in zip(before, each)]
        return float(total + sum(min(each) for each in undecided.values()))

    def _refusal(self) -> str:
        limits = ", ".join(f"max_{kind}={limit:g}" for kind, limit in self.limits.items())
        least = ", ".join(f"{self._least({}, kind):.4g} {kind}" for kind in self.limits)
        return f"No choices keep the limits {limits}; the least is about {least}."
