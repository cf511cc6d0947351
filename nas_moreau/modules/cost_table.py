"""The costs of options as a table, and what choices cost by it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from nas_moreau.errors import InputError
from nas_moreau.modules.choice import Places
from nas_moreau.runs.atomic import write_atomic

KINDS = ("parameters", "macs", "ms")
CASES = 4096
"""Choices of the decisions with Choices in their options that are compared for the cheapest and the dearest module."""


@dataclass(frozen=True)
class OptionCost:
    """The cost of an option at all places of its decision, without what Choices within it cost.

    Attributes:
        parameters: Number of scalars.
        macs: Multiply-adds of convolutions, linear layers and matrix products for one sample.
        ms: Median of the measured milliseconds for one sample.
        spread: Half of the interquartile range of the timings, ms.
    """

    parameters: int
    macs: int
    ms: float
    spread: float = 0.0


@dataclass(frozen=True)
class CostTable:
    """The costs of all options, and of the part of the module that is the same for all choices.

    Attributes:
        base: Of the rest.
        options: Place of a Choice -> cost of each option there, in the order of its options.
        device: On which the latency was measured, in words.
        names: Place of a Choice -> names of its options; empty in a table made by hand.
    """

    base: OptionCost
    options: dict[str, list[OptionCost]]
    device: str
    names: dict[str, list[str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        options = {place: [vars(cost) for cost in found] for place, found in self.options.items()}
        base = vars(self.base)
        return {"version": 1, "device": self.device, "base": base, "options": options, "names": self.names}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CostTable:
        """Returns the table that `to_dict` wrote.

        Raises:
            InputError: The data are damaged.
        """
        try:
            options = {place: [OptionCost(**cost) for cost in found] for place, found in data["options"].items()}
            found = cls(OptionCost(**data["base"]), options, str(data["device"]), dict(data["names"]))
            for cost in (found.base, *(cost for costs in options.values() for cost in costs)):
                if not all(type(value) in (int, float) and math.isfinite(value) for value in vars(cost).values()):
                    raise ValueError("a cost is not a number")
                if cost.parameters < 0 or cost.ms < 0:
                    raise ValueError("a cost is negative")
            return found
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(f"The table of costs is damaged ({error}).", "Measure again.") from None

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the table as JSON."""
        write_atomic(Path(path), (json.dumps(self.to_dict(), indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> CostTable:
        """Returns a saved table.

        Raises:
            InputError: It cannot be read.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"The table of costs {path} cannot be read: {error}.", "Measure again.") from None

    def check(self, places: Places) -> None:
        """Raises InputError unless the table is of a module with these Choices and options."""
        names = places.names()
        counts = {place: len(found) for place, found in names.items()}
        if {place: len(found) for place, found in self.options.items()} != counts or self.names not in ({}, names):
            raise InputError("The table of costs is of a module with other Choices.", "Measure again.")

    def largest(self, kind: str) -> float:
        """Returns the sum over all places of the most expensive option."""
        return sum(max(getattr(cost, kind) for cost in found) for found in self.options.values())

    def smallest(self, kind: str) -> float:
        """Returns the sum over all places of the cheapest option."""
        return sum(min(getattr(cost, kind) for cost in found) for found in self.options.values())


class Costs:
    """The cost of choices.

    Args:
        table: Of every option.
        places: The Choices.
    """

    def __init__(self, table: CostTable, places: Places):
        table.check(places)
        self.table, self.places = table, places
        self.parents = parents_of(places)
        self._sent: dict[Any, torch.Tensor] = {}

    def of(self, picks: Mapping[str, int]) -> dict[str, float]:
        """Returns "parameters", "macs" and "ms" of the module with the picked options."""
        found = {kind: getattr(self.table.base, kind) for kind in KINDS}
        for path, name in self.places.paths.items():
            if all(picks[self.places.paths[parent]] in holding for parent, holding in self.parents[path]):
                for kind in KINDS:
                    found[kind] += getattr(self.table.options[path][picks[name]], kind)
        return found

    def expected(self, weights: Mapping[str, torch.Tensor], kind: str) -> torch.Tensor:
        """Returns the mean cost of the options under independent draws, relative to the most expensive ones: 0 to 1.

        The part that no option changes is left out. A Choice within an option counts with that option's weight.

        Args:
            weights: Decision -> weights of its options.
            kind: One of `KINDS`.
        """
        rows = {path: [getattr(cost, kind) for cost in found] for path, found in self.table.options.items()}
        return self._mean(weights, rows) / max(self.table.largest(kind), 1e-30)

    def extremes(self, kind: str) -> tuple[float, float]:
        """Returns the costs of the cheapest and of the dearest module, without the part that no option changes.

        Args:
            kind: One of `KINDS`.
        """
        paths, options = self.places.paths, self.places.options
        outer = sorted({paths[parent] for known in self.parents.values() for parent, _ in known})
        if math.prod(len(options[name]) for name in outer) > CASES:
            return self.table.smallest(kind), self.table.largest(kind)
        found = []
        for numbers in itertools.product(*(range(len(options[name])) for name in outer)):
            picks, fixed = dict(zip(outer, numbers)), 0.0
            rows: dict[str, list[float]] = {}
            for path, name in paths.items():
                if any(picks[paths[parent]] not in holding for parent, holding in self.parents[path]):
                    continue
                row = [getattr(cost, kind) for cost in self.table.options[path]]
                if name in picks:
                    fixed += row[picks[name]]
                else:
                    rows[name] = [a + b for a, b in zip(rows.get(name, [0.0] * len(row)), row)]
            found.append([fixed + sum(map(extreme, rows.values())) for extreme in (min, max)])
        return min(low for low, _ in found), max(high for _, high in found)

    def between(self, kind: str) -> Callable[[Mapping[str, torch.Tensor]], torch.Tensor]:
        """Returns the mean cost as a function of the weights: 0 for the cheapest module, 1 for the dearest one.

        Args:
            kind: One of `KINDS`.

        Raises:
            InputError: All modules cost the same.
        """
        low, high = self.extremes(kind)
        if not high - low > 1e-9 * max(abs(high), 1.0):
            raise InputError(
                f"All choices have the same {kind}, so there is nothing to weigh against the loss.",
                f"Take another cost than {kind}, or options that differ in it.",
            )
        costs = {path: [getattr(cost, kind) for cost in found] for path, found in self.table.options.items()}
        # differences are small beside the costs: what all options have in common is taken off first
        common = {path: 0.0 if self.parents[path] else min(row) for path, row in costs.items()}
        rows = {path: [(value - common[path]) / (high - low) for value in row] for path, row in costs.items()}
        rest = (low - sum(common.values())) / (high - low)
        return lambda weights: self._mean(weights, rows) - rest

    def _mean(self, weights: Mapping[str, torch.Tensor], rows: Mapping[str, Sequence[float]]) -> torch.Tensor:
        """Returns the sum over all places of the mean of a row, times the probability that the place is reached."""
        terms = []
        for path, name in self.places.paths.items():
            row = weights[name]
            term = (row * self._on(row, rows[path])).sum()
            for parent, holding in self.parents[path]:
                reached = weights[self.places.paths[parent]]
                term = term * (reached * self._on(reached, [float(k in holding) for k in range(len(reached))])).sum()
            terms.append(term)
        return torch.stack(terms).sum()

    def _on(self, like: torch.Tensor, row: Sequence[float]) -> torch.Tensor:
        """Returns a row of numbers where a tensor lies; sent there once."""
        key = tuple(row), like.dtype, like.device
        if key not in self._sent:
            self._sent[key] = torch.tensor(row, dtype=like.dtype, device="cpu").to(like.device)
        return self._sent[key]


def parents_of(places: Places) -> dict[str, list[tuple[str, frozenset[int]]]]:
    """Returns for every Choice those that it is within, each with the options that hold it."""
    found: dict[str, list[tuple[str, frozenset[int]]]] = {path: [] for path in places.paths}
    for parent, name in places.paths.items():
        holding: dict[str, set[int]] = {}
        for number in range(len(places.options[name])):
            for inner in places.within(parent, number):
                holding.setdefault(inner, set()).add(number)
        for inner, numbers in holding.items():
            found[inner].append((parent, frozenset(numbers)))
    return found
