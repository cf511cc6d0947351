"""Costs in a search: the table of measured costs, penalties in the upper loss, and limits that the choices keep."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas_moreau import distributed
from nas_moreau.architecture import AlphaTable
from nas_moreau.errors import InputError, quoted, unknown
from nas_moreau.modules.cost_table import KINDS, Costs, CostTable
from nas_moreau.modules.costs import count_parameters, measure_costs
from nas_moreau.modules.limits import Limited
from nas_moreau.modules.problem import softmax_mixtures
from nas_moreau.modules.setup import ModuleSetup

COSTS_FILE = "costs.json"
Penalty = Callable[[dict[str, Tensor]], Tensor]
"""Decision -> softmax weights of its options -> scalar."""


def check_penalty(penalty: Any) -> dict[str, float] | Penalty | None:
    """Returns a penalty as `search_module` takes it.

    Raises:
        InputError: It is neither a dict of weights nor a function.
    """
    if penalty is None or callable(penalty):
        return penalty
    if not isinstance(penalty, Mapping):
        raise InputError(f"The penalty is {quoted(penalty)}.", 'Give {"ms": 0.5}, or a function of the weights.')
    for kind, weight in penalty.items():
        if kind not in KINDS:
            raise unknown("cost of the penalty", kind, KINDS)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise InputError(f"The penalty of {kind} is {quoted(weight)}.", "Give a number of at least 0.")
    return {kind: float(weight) for kind, weight in penalty.items()}


@dataclass(frozen=True)
class Priced:
    """What choices cost in a search.

    Attributes:
        setup: The search; its upper loss has the penalty.
        costs: Of the options; None where nothing needs them.
        penalty: Weights of expected costs, or a function; None without.
        limits: Cost -> maximum.
    """

    setup: ModuleSetup
    costs: Costs | None = None
    penalty: dict[str, float] | Penalty | None = None
    limits: Mapping[str, float] | None = None

    @classmethod
    def of(
        cls,
        setup: ModuleSetup,
        penalty: dict[str, float] | Penalty | None,
        limits: Mapping[str, float],
        costs: CostTable | str | PathLike[str] | None,
        output: str | PathLike[str] | None,
    ) -> Priced:
        """Returns the costs of a search, and the search with its penalty.

        Args:
            setup: The search without a penalty.
            penalty: See `check_penalty`.
            limits: Cost -> maximum.
            costs: A table or its file; by default that of the run folder, or else measured where it is needed.
            output: The run folder, or None.

        Raises:
            InputError: The table cannot be used, or no choices keep the limits.
        """
        needed = bool(limits) or isinstance(penalty, dict)
        table = costs if isinstance(costs, CostTable) or costs is None else CostTable.load(costs)
        kept = None if output is None else Path(output) / COSTS_FILE
        if table is None and needed:

            def own() -> dict[str, Any]:
                known = kept is not None and kept.is_file()
                found = CostTable.load(kept) if known and kept is not None else measure_costs(setup)
                return found.to_dict()

            table = CostTable.from_dict(distributed.run_on_rank0(own))
        elif table is not None and kept is not None:
            _refuse_others(table, kept)
        if table is not None and table.names:
            _refuse_other_sizes(table, setup)
        priced = cls(setup, None if table is None else Costs(table, setup.places), penalty, limits)
        if limits:
            priced.pick(setup.alpha_table(setup.posed.x))  # refuses limits that no choices keep
        term = priced._term()
        return priced if term is None else replace(priced, setup=setup.with_penalty(term))

    def measured(self) -> Priced:
        """Returns the same with measured costs."""
        return replace(self, costs=Costs(measure_costs(self.setup), self.setup.places))

    def configuration(self) -> dict[str, Any]:
        """Returns entries of config.yaml."""
        if self.penalty is None and not self.limits:
            return {}
        shown = self.penalty if isinstance(self.penalty, dict) or self.penalty is None else "a function"
        return {"penalty": shown, "limits": dict(self.limits or {})}

    def files(self) -> dict[str, bytes]:
        """Returns the files of the run folder: costs.json."""
        if self.costs is None:
            return {}
        return {COSTS_FILE: (json.dumps(self.costs.table.to_dict(), indent=1) + "\n").encode()}

    def keeps(self, picks: dict[str, int]) -> bool:
        """Returns whether choices keep the limits."""
        return not self.limits or self.costs is None or Limited(self.costs, self.limits).keeps(picks)

    def pick(self, table: AlphaTable) -> dict[str, int]:
        """Returns decision -> number of the option: the strongest ones that keep the limits."""
        if self.limits and self.costs is not None:
            return Limited(self.costs, self.limits).pick(table)
        return {name: list(row.weights).index(row.ranked()[0]) for name, (row,) in table.cells.items()}

    def costs_of(self, picks: Mapping[str, int]) -> dict[str, float]:
        """Returns what the module of these choices costs; {} where nothing was measured."""
        return {} if self.costs is None else self.costs.of(picks)

    def expected(self, x: list[Tensor]) -> dict[str, float]:
        """Returns columns of metrics.csv: costs that the softmax expects, relative to the most expensive options."""
        if self.costs is None:
            return {}
        weights = self._weights(x)
        return {f"expected_{kind}": float(self.costs.expected(weights, kind)) for kind in KINDS}

    def _weights(self, x: list[Tensor]) -> dict[str, Tensor]:
        mixtures = softmax_mixtures(x)
        return {name: mixture.weights for name, mixture in zip(self.setup.places.by_name, mixtures)}

    def _term(self) -> Callable[[list[Tensor]], Tensor] | None:
        """Returns what F adds, a function of the alphas."""
        penalty, costs = self.penalty, self.costs
        if callable(penalty):

            def own(x: list[Tensor]) -> Tensor:
                found = penalty(self._weights(x))
                if not isinstance(found, Tensor) or found.ndim:
                    raise InputError("The penalty does not return a scalar tensor.", "Return a sum of the weights.")
                return found

            return own
        if penalty is None or costs is None or not any(penalty.values()):
            return None
        weighed = {kind: weight for kind, weight in penalty.items() if weight}

        def term(x: list[Tensor]) -> Tensor:
            weights = self._weights(x)
            return torch.stack([weight * costs.expected(weights, kind) for kind, weight in weighed.items()]).sum()

        return term


def _refuse_others(table: CostTable, kept: Path) -> None:
    """Raises InputError if the run folder has another table: a search does not change what it weighs."""

    def compare() -> None:
        if kept.is_file() and CostTable.load(kept) != table:
            raise InputError(
                f"The costs are not those of {kept}, with which the search in this folder was begun.",
                "Leave costs out to continue with those, or take another folder.",
            )

    distributed.run_on_rank0(compare)


def _refuse_other_sizes(table: CostTable, setup: ModuleSetup) -> None:
    """Raises InputError if a measured table is of a module of other sizes."""
    table.check(setup.places)
    outside, options = count_parameters(setup.whole.module, setup.places)
    known = {place: [cost.parameters for cost in costs] for place, costs in table.options.items()}
    if (table.base.parameters, known) != (outside, options):
        raise InputError("The table of costs is of a module with other numbers of parameters.", "Measure again.")
