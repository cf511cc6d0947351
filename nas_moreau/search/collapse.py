"""The one definition of collapse: which edges are idle, the verdict on a cell, and the guard that acts on it.

Differentiable searches are known to end in cells of skip connections (Zela et al., "Understanding and Robustifying
Differentiable Architecture Search", ICLR 2020), often after a rise of the dominant eigenvalue of the Hessian of the
upper loss in the alphas, and to lose their accuracy when the mixture is replaced by the derived cell. Terminal,
result.json, report, guard and comparison all take the verdict from here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from nas_moreau.architecture import AlphaTable, Genotype, SearchSpace

IDLE = ("skip_connect", "none", "noise")
"""Operations that learn and compute nothing; `noise` is the one of RobustDARTS S4."""
COLLAPSED = 0.5
"""A cell with a larger share of idle edges has collapsed. Published cells of the DARTS space have at most 3 of 8."""
UNDECIDED = 1.5
"""A search has decided nothing while no softmax weight exceeds this multiple of the uniform one (our choice)."""
PATIENCE = 3
"""Collapsed epochs in a row after which the guard `stop` ends a search (our choice)."""


@dataclass(frozen=True)
class CellHealth:
    """The edges of a derived cell.

    Attributes:
        edges: How many there are.
        idle: Idle operation -> number of edges that carry it.
        judged: Whether the cell counts for the verdict. Reduction cells do not: a network has two of them, and good
            published ones are full of pooling and skip connections.
    """

    edges: int
    idle: dict[str, int]
    judged: bool = True

    @property
    def count(self) -> int:
        """Number of idle edges."""
        return sum(self.idle.values())

    @property
    def share(self) -> float:
        """Share of idle edges, 0..1."""
        return self.count / self.edges

    @property
    def collapsed(self) -> bool:
        """Whether the cell counts for the verdict and more than half of its edges are idle."""
        return self.judged and self.share > COLLAPSED

    def __str__(self) -> str:
        which = ", ".join(f"{count} {operation}" for operation, count in self.idle.items())
        return f"{self.count} of {self.edges} edges are idle" + (f" ({which})" if which else "")


@dataclass(frozen=True)
class Health:
    """What a derived genotype and its softmax weights look like.

    Attributes:
        cells: Cell name -> its edges.
        largest_weight: The largest softmax weight of the search, None where there are no weights (a random cell).
        uniform_weight: The weight of an operation when all weigh the same; None without weights.
        trained: Whether short training of candidates chose the genotype (`derive.rule=trained`): then it is decided,
            whatever the weights are.
    """

    cells: dict[str, CellHealth]
    largest_weight: float | None = None
    uniform_weight: float | None = None
    trained: bool = False

    @property
    def collapsed(self) -> bool:
        """Whether more than half of the edges of a normal cell are idle."""
        return any(cell.collapsed for cell in self.cells.values())

    @property
    def undecided(self) -> bool:
        """Whether no softmax weight exceeds `UNDECIDED` times the uniform one, and nothing else decided."""
        if self.trained or self.largest_weight is None or self.uniform_weight is None:
            return False
        return self.largest_weight < UNDECIDED * self.uniform_weight

    @property
    def verdict(self) -> str:
        """The verdict: "collapsed", "undecided" or "healthy"."""
        return "collapsed" if self.collapsed else "undecided" if self.undecided else "healthy"

    @property
    def idle_share(self) -> float:
        """Share of idle edges among those of the cells that count for the verdict, 0..1."""
        judged = [cell for cell in self.cells.values() if cell.judged]
        return sum(cell.count for cell in judged) / max(1, sum(cell.edges for cell in judged))

    def __str__(self) -> str:
        """Returns the verdict with its reason, as it stands in result.json."""
        several = len(self.cells) > 1
        reasons = ", ".join(f"{name}: {cell}" if several else str(cell) for name, cell in self.cells.items())
        if self.verdict == "undecided":
            reasons = (
                f"no operation is clearly preferred (largest softmax weight {self.largest_weight:.2f}, uniform "
                f"{self.uniform_weight:.2f}), so that another seed would likely give another cell; {reasons}"
            )
        elif self.trained and not self.collapsed:
            reasons = f"chosen by short training; {reasons}"
        return f"{self.verdict}: {reasons}"

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data: what result.json holds under `health`."""
        return {
            "verdict": self.verdict,
            "idle_share": self.idle_share,
            "largest_weight": self.largest_weight,
            "uniform_weight": self.uniform_weight,
            "trained": self.trained,
            "cells": {name: vars(cell) | {"idle": dict(cell.idle)} for name, cell in self.cells.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Health:
        """Returns the health that `to_dict` wrote."""
        cells = {name: CellHealth(**cell) for name, cell in data["cells"].items()}
        return cls(cells, data["largest_weight"], data["uniform_weight"], data["trained"])


def assess(genotype: Genotype, table: AlphaTable | None = None, trained: bool = False) -> Health:
    """Returns the health of a derived genotype.

    Args:
        genotype: The genotype.
        table: The weights of the search; None for a cell without a search.
        trained: Whether short training of candidates chose it.
    """
    cells, judged = {}, genotype.skeleton.judged
    for name, cell in genotype.cells.items():
        counts = Counter(operation for operation, _, _ in cell.edges)
        idle = {operation: counts[operation] for operation in IDLE if counts[operation]}
        cells[name] = CellHealth(len(cell.edges), idle, judged=judged is None or name in judged)
    if table is None:
        return Health(cells, trained=trained)
    edges = [row.weights for rows in table.cells.values() for row in rows]
    # the edge that is furthest from uniform: edges may have different numbers of candidates
    most = max(edges, key=lambda weights: max(weights.values()) * len(weights))
    return Health(cells, max(most.values()), 1 / len(most), trained)


def signs(space: SearchSpace, table: AlphaTable, genotype: Genotype) -> dict[str, float]:
    """Returns, for each cell, columns of metrics.csv.

    `alpha_entropy_`: mean entropy of its edges in nats. `margin_`: mean over its edges of the strongest weight minus
    the next one. `idle_lead_`: share of all edges of the space whose strongest operation, among those that may be
    chosen, is idle. `idle_share_`: share of idle edges in the derived cell.

    Args:
        space: The space of the search.
        table: The weights of the search.
        genotype: The derived cells.
    """
    row, health, excluded = {}, assess(genotype), space.derivation.exclude
    for cell, edges in table.cells.items():
        entropy = sum(w * math.log(w) for edge in edges for w in edge.weights.values() if w > 0)
        row[f"alpha_entropy_{cell}"] = -entropy / len(edges)
        row[f"margin_{cell}"] = sum(edge.margin() or 0.0 for edge in edges) / len(edges)
        row[f"idle_lead_{cell}"] = sum(edge.ranked(excluded)[0] in IDLE for edge in edges) / len(edges)
        row[f"idle_share_{cell}"] = health.cells[cell].share
    return row


class CollapseGuard(NamedTuple):
    """The state of the guard from epoch to epoch; checkpoints carry it.

    Attributes:
        streak: Collapsed epochs in a row until now.
        accuracy: The best one-hot accuracy of a derived cell on the held-out images.
        epoch: The first epoch that reached it, counted from 0.
        alphas: The alphas at its end.
    """

    streak: int = 0
    accuracy: float = -1.0
    epoch: int = -1
    alphas: list[Tensor] | None = None

    def after(self, epoch: int, genotype: Genotype, accuracy: float, alphas: list[Tensor]) -> CollapseGuard:
        """Returns the state after an epoch with this derived cell, one-hot accuracy and alphas."""
        now = self._replace(streak=self.streak + 1 if assess(genotype).collapsed else 0)
        if accuracy <= self.accuracy:
            return now
        return now._replace(accuracy=accuracy, epoch=epoch, alphas=[tensor.detach().clone() for tensor in alphas])

    def summary(self, guard: str) -> dict[str, Any]:
        """Returns what the guard did, for result.json; epochs counted from 0 as in metrics.csv."""
        if guard == "best":
            return {"rule": guard, "epoch": self.epoch, "one_hot_accuracy": self.accuracy}
        return {"rule": guard, "stopped": self.stops(guard), "collapsed_epochs": self.streak}

    def stops(self, guard: str) -> bool:
        """Returns whether the guard ends the search: `stop`, after `PATIENCE` collapsed epochs in a row."""
        return guard == "stop" and self.streak >= PATIENCE
