"""What a search in a module returns as plain data: result.json as a dataclass, and the verdict on the choices."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from nas_moreau.search.collapse import UNDECIDED

Weights = dict[str, dict[str, float]]
"""Decision -> option -> softmax weight."""


@dataclass(frozen=True)
class ModuleResult:
    """The outcome of a search in a module.

    Attributes:
        method: The search method.
        choices: Decision -> chosen option.
        weights: Decision -> option -> softmax weight; uniform for the method `random`.
        seed: Of the run.
        steps: Steps done.
        wall_seconds: Wall-clock time, evaluations included.
        peak_memory_bytes: The most that the process held; on an accelerator, that its allocator took.
        held_out: Means over the held-out samples of "loss" (and "metric") with all options, weighed by the softmax.
        one_hot: The same with the chosen options alone.
        costs: What the chosen module costs: "parameters", "macs", "ms", as far as known.
        limits: The limits that the choices keep, by the same names.
        places: Place in the module -> decision.
        last_stage: Of the rule `trained`: the number of samples that modules were compared on, the choices of the
            weights ("first"), whether others were chosen ("moved"), and the candidates and losses of every round.
    """

    method: str
    choices: dict[str, str]
    weights: Weights
    seed: int
    steps: int
    wall_seconds: float
    peak_memory_bytes: int
    held_out: dict[str, float] | None = None
    one_hot: dict[str, float] | None = None
    costs: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    last_stage: dict[str, Any] | None = None

    @property
    def margins(self) -> dict[str, float]:
        """Decision -> weight of the chosen option minus the largest of the others; negative under a limit."""
        return {name: _margin(self.weights[name], option) for name, option in self.choices.items()}

    @property
    def margin(self) -> float:
        """The smallest of the margins."""
        return min(self.margins.values())

    @property
    def undecided(self) -> list[str]:
        """Decisions of which no weight exceeds the uniform one clearly (`search.collapse.UNDECIDED` times)."""
        return [
            name
            for name, options in self.weights.items()
            if max(options.values()) < min(UNDECIDED, (1 + len(options)) / 2) / len(options)
        ]

    @property
    def verdict(self) -> str:
        """How sure the choices are, in a sentence."""
        if self.method == "random":
            return "random: drawn uniformly, nothing was searched"
        name = min(self.margins, key=lambda key: self.margins[key])
        weights = self.weights[name]
        ranked = sorted(weights, key=lambda option: -weights[option])[:2]
        least = f"the least certain is '{name}': " + ", ".join(f"{option} {weights[option]:.2f}" for option in ranked)
        if self.last_stage is not None:
            return f"{self._trained()}; by the weights alone, {least}"
        open_ = self.undecided
        if open_:
            return f"undecided: {len(open_)} of {len(self.choices)} decisions have no clear option; {least}"
        return f"decided: every decision has a clear option; {least}"

    def _trained(self) -> str:
        """What the last stage found, in words."""
        rounds = (self.last_stage or {})["rounds"]
        last = rounds[-1]["candidates"]
        losses = " to ".join("not finite" if row["loss"] is None else f"{row['loss']:.4g}" for row in last[:2])
        count = len(rounds[0]["candidates"])
        return f"trained: the lowest loss of {count} candidates in short training (last round: {losses})"

    def __str__(self) -> str:
        return ", ".join(f"{name}={option}" for name, option in self.choices.items())

    def to_dict(self) -> dict[str, Any]:
        """Returns what result.json holds."""
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        # a held-out sample may be NaN; JSON has no such number
        for name in ("held_out", "one_hot"):
            if plain[name] is not None:
                plain[name] = {key: value if math.isfinite(value) else None for key, value in plain[name].items()}
        return {**plain, "verdict": self.verdict, "margins": self.margins, "margin": self.margin}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModuleResult:
        """Returns the result that `to_dict` wrote."""
        plain = {entry.name: data[entry.name] for entry in fields(cls) if entry.name in data}
        for name in ("held_out", "one_hot"):
            if plain[name] is not None:
                plain[name] = {key: math.nan if value is None else value for key, value in plain[name].items()}
        found = cls(**plain)
        # result.json is sorted by key; the order of the decisions is that of the module
        order = list(dict.fromkeys(found.places.values()))
        ordered = {name: found.choices[name] for name in order}
        return cls(**{**vars(found), "choices": ordered, "weights": {name: found.weights[name] for name in order}})


def _margin(weights: Mapping[str, float], chosen: str) -> float:
    return weights[chosen] - max(weight for option, weight in weights.items() if option != chosen)


def choices_json(choices: Mapping[str, str]) -> bytes:
    """Returns choices.json: decision -> option, in the order of the module."""
    return (json.dumps({"version": 1, "choices": dict(choices)}, indent=1, ensure_ascii=False) + "\n").encode()
