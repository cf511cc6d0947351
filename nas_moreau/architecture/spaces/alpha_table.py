"""The architecture weights of a search as data: softmax weights by cell, edge and operation. Imports no torch.

A search moves logits; everything that reads them afterwards (derivation, reports, drawings, comparisons) reads this
table. It is made from logits by one softmax in double precision, and goes to alphas.csv and result.json and back
without loss.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nas_moreau.architecture.spaces.space import SearchSpace
from nas_moreau.architecture.spaces.space_rules import Place
from nas_moreau.errors import InputError, quoted

CURE = "Give the alphas of this space, as its supernet holds them."


@dataclass(frozen=True)
class EdgeWeights:
    """The candidates of one edge and their weights.

    Args:
        edge: (from, to).
        weights: Candidate operation -> softmax weight, in the order of the search space.
        edge_weight: Softmax weight of this edge among those into its node; None where a search has no such weights.
        logits: Candidate operation -> logit (plus that of the edge, if it has one), where the weights were computed
            from logits; None where they were read from a file.
    """

    edge: Place
    weights: Mapping[str, float]
    edge_weight: float | None = None
    logits: Mapping[str, float] | None = field(default=None, compare=False, repr=False)

    def strength(self, operation: str) -> float:
        """Returns the weight that derivation compares: softmax weight times edge weight."""
        weight = self.weights[operation]
        return weight if self.edge_weight is None else self.edge_weight * weight

    def ranked(self, exclude: Collection[str] = ()) -> list[str]:
        """Returns the candidates but `exclude`, the strongest first; ties keep the order of the search space."""
        names = [name for name in self.weights if name not in exclude]
        return sorted(names, key=lambda name: -self.weights[name])

    def margin(self, exclude: Collection[str] = ()) -> float | None:
        """Returns the weight of the strongest candidate but `exclude` minus that of the next; None without a next."""
        first, second, *_ = [*self.ranked(exclude), None, None]
        return None if first is None or second is None else self.weights[first] - self.weights[second]


@dataclass(frozen=True)
class AlphaTable:
    """Softmax weights of a search.

    Args:
        cells: Cell name -> its edges, in the order of the search space.

    Example:
        >>> from nas_moreau.architecture import load_space
        >>> table = AlphaTable.from_logits(load_space("nas_bench_201"), {"cell": [[0.0, 0.0, 0.0, 1.0, 0.0]] * 6})
        >>> first = table.cells["cell"][0]
        >>> first.edge, first.ranked()[0], round(first.margin(), 3)
        ((0, 1), 'nor_conv_3x3', 0.256)
    """

    cells: Mapping[str, tuple[EdgeWeights, ...]]

    @classmethod
    def from_logits(cls, space: SearchSpace, alphas: Mapping[str, Any]) -> AlphaTable:
        """Returns the softmax of logits, over the candidates of an edge and, for edge logits, over a node's edges.

        Args:
            space: Cells, edges and operations.
            alphas: Cell name -> logits (edges, operations): tensors, arrays or lists; columns beyond an edge's own
                candidates are ignored. Optionally "edge_" + cell name -> logits (edges,), as of partial channels
                (PC-DARTS).

        Raises:
            InputError: A cell is missing or unknown, a shape is wrong, or a number is not finite.
        """
        _check_names(space, alphas)
        shape = space.alpha_shape
        cells = {}
        for name in space.cells:
            rows = _numbers(alphas[name], shape, name)
            shares: list[float | None] = [None] * len(rows)
            if f"edge_{name}" in alphas:
                extra = _numbers(alphas[f"edge_{name}"], shape[:1], f"edge_{name}")
                for into in space.incoming():
                    for i, share in zip(into, softmax([extra[i] for i in into])):
                        shares[i] = share
            else:
                extra = [0.0] * len(rows)
            found = []
            for i, (edge, row) in enumerate(zip(space.edges, rows)):
                names = space.candidates(name, i)
                row = row[: len(names)]
                logits = dict(zip(names, (logit + extra[i] for logit in row)))
                found.append(EdgeWeights(edge, dict(zip(names, softmax(row))), shares[i], logits))
            cells[name] = tuple(found)
        return cls(cells)

    @classmethod
    def uniform(cls, space: SearchSpace) -> AlphaTable:
        """Returns the table in which all candidates of an edge have the same weight."""
        edges, operations = space.alpha_shape
        return cls.from_logits(space, {name: [[0.0] * operations for _ in range(edges)] for name in space.cells})

    @classmethod
    def from_dict(cls, space: SearchSpace, data: Mapping[str, Any]) -> AlphaTable:
        """Returns the table that `to_dict` wrote; other keys of `data` (result.json has more) are ignored.

        Args:
            space: The space of the search.
            data: `alphas`: cell name -> for every edge the weights of its candidates; optional `edge_weights`: cell
                name -> weights.

        Raises:
            InputError: The weights are not those of a search in this space.
        """
        weights, edge_weights = data.get("alphas"), data.get("edge_weights", {})
        if not isinstance(weights, Mapping) or not isinstance(edge_weights, Mapping):
            raise InputError("There are no softmax weights by cell.", CURE)
        named = {**weights, **{f"edge_{name}": shares for name, shares in edge_weights.items()}}
        _check_names(space, named)
        cells = {}
        for name in space.cells:
            rows = _sequence(weights[name], len(space.edges), name)
            shares: Sequence[float | None] = [None] * len(rows)
            if name in edge_weights:
                shares = _numbers(edge_weights[name], space.alpha_shape[:1], f"edge_{name}")
            found = []
            for i, edge in enumerate(space.edges):
                names = space.candidates(name, i)
                row = _numbers(rows[i], (len(names),), name)
                found.append(EdgeWeights(edge, dict(zip(names, row)), shares[i]))
            cells[name] = tuple(found)
        return cls(cells)

    def to_dict(self) -> dict[str, Any]:
        """Returns the plain data for result.json: `alphas` and, where edges have weights, `edge_weights`."""
        found: dict[str, Any] = {
            "alphas": {name: [list(row.weights.values()) for row in rows] for name, rows in self.cells.items()}
        }
        if self.has_edge_weights:
            found["edge_weights"] = {name: [row.edge_weight for row in rows] for name, rows in self.cells.items()}
        return found

    def to_rows(self, epoch: int) -> list[dict[str, Any]]:
        """Returns the rows of alphas.csv for one epoch: `epoch cell edge operation weight` (and `edge_weight`)."""
        rows = []
        for name, edges in self.cells.items():
            for row in edges:
                extra = {} if row.edge_weight is None else {"edge_weight": row.edge_weight}
                edge = f"{row.edge[0]}-{row.edge[1]}"
                for operation, weight in row.weights.items():
                    rows.append({"epoch": epoch, "cell": name, "edge": edge, "operation": operation, "weight": weight})
                    rows[-1] |= extra
        return rows

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> dict[int, AlphaTable]:
        """Returns the table of every epoch from the rows of alphas.csv, numbers as text or as numbers.

        The rows describe themselves: no search space is needed; `check` compares a table with one. Of two rows for one
        weight the later one counts.

        Raises:
            InputError: A column is missing, or not a number where a number is needed.
        """
        epochs: dict[int, dict[str, dict[Place, tuple[dict[str, float], float | None]]]] = {}
        for row in rows:
            try:
                epoch, weight = int(row["epoch"]), float(row["weight"])
                source, _, target = row["edge"].partition("-")
                edge, cell, operation = (int(source), int(target)), row["cell"], row["operation"]
                share = float(row["edge_weight"]) if "edge_weight" in row else None
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise InputError(f"A row of weights is damaged ({error}).", "Restore the file.") from None
            weights, _ = epochs.setdefault(epoch, {}).setdefault(cell, {}).setdefault(edge, ({}, share))
            weights[operation] = weight
        return {
            epoch: cls(
                {
                    cell: tuple(EdgeWeights(edge, *found) for edge, found in edges.items())
                    for cell, edges in cells.items()
                }
            )
            for epoch, cells in epochs.items()
        }

    @classmethod
    def mean(cls, tables: Sequence[AlphaTable]) -> AlphaTable:
        """Returns the mean of tables of one space: of the weights, and of the edge weights.

        Softmax weights are averaged, not logits: a search with larger logits counts no more than the others.
        """
        cells = {}
        for name, edges in tables[0].cells.items():
            rows = zip(*(table.cells[name] for table in tables))
            cells[name] = tuple(_mean_of_edge(several) for several in rows)
            assert len(cells[name]) == len(edges)
        return cls(cells)

    def perturbed(self, draw: random.Random) -> AlphaTable:
        """Returns the table with Gumbel noise added to the logarithms of the weights (perturb and maximise).

        The strongest candidate of an edge is then each one with the probability of its weight.

        Args:
            draw: Where the noise is from.
        """
        cells = {}
        for name, edges in self.cells.items():
            noisy = [_noisy(list(row.weights.values()), draw) for row in edges]
            shares: list[float | None] = [None] * len(edges)
            if edges[0].edge_weight is not None:
                powers = [math.exp(logit) for logit in _noisy([row.edge_weight or 0.0 for row in edges], draw)]
                into = [math.fsum(p for p, row in zip(powers, edges) if row.edge[1] == own.edge[1]) for own in edges]
                shares = [power / total for power, total in zip(powers, into)]
            cells[name] = tuple(
                EdgeWeights(row.edge, dict(zip(row.weights, softmax(logits))), share)
                for row, logits, share in zip(edges, noisy, shares)
            )
        return AlphaTable(cells)

    @property
    def has_edge_weights(self) -> bool:
        """Whether there are edge weights (partial channels)."""
        return any(row.edge_weight is not None for rows in self.cells.values() for row in rows)

    def without_edge_weights(self) -> AlphaTable:
        """Returns the table of the operations alone."""
        return AlphaTable(
            {name: tuple(EdgeWeights(row.edge, row.weights) for row in rows) for name, rows in self.cells.items()}
        )

    def check(self, space: SearchSpace) -> None:
        """Raises InputError when the cells, edges or candidates are not those of `space`."""
        _check_names(space, self.cells)
        for name, rows in self.cells.items():
            if [row.edge for row in rows] != list(space.edges):
                raise InputError(f"Cell '{name}' has other edges than the space '{space.name}'.", CURE)
            for i, row in enumerate(rows):
                if tuple(row.weights) != space.candidates(name, i):
                    raise InputError(
                        f"Edge {row.edge[0]}-{row.edge[1]} of cell '{name}' has other operations than the space "
                        f"'{space.name}'.",
                        CURE,
                    )


def softmax(logits: Sequence[float]) -> list[float]:
    """Returns exp(logit) / sum(exp(logits)), in double precision; it does not depend on the order of the logits."""
    highest = max(logits)
    powers = [math.exp(logit - highest) for logit in logits]
    # fsum rounds once, so that edges with the same logits in another order tie exactly
    total = math.fsum(powers)
    return [power / total for power in powers]


def _mean_of_edge(several: Sequence[EdgeWeights]) -> EdgeWeights:
    first, count = several[0], len(several)
    weights = {name: math.fsum(row.weights[name] for row in several) / count for name in first.weights}
    if first.edge_weight is None:
        return EdgeWeights(first.edge, weights)
    return EdgeWeights(first.edge, weights, math.fsum(row.edge_weight or 0.0 for row in several) / count)


def _noisy(weights: Sequence[float], draw: random.Random) -> list[float]:
    return [math.log(max(weight, 1e-12)) - math.log(draw.expovariate(1.0) + 1e-300) for weight in weights]


def _check_names(space: SearchSpace, alphas: Mapping[str, Any]) -> None:
    given = [str(key) for key in alphas]
    missing = [name for name in space.cells if name not in given]
    unknown = [key for key in given if key.removeprefix("edge_") not in space.cells]
    if missing or unknown:
        problems = [f"alphas of cell '{name}' are missing" for name in missing]
        problems += [f"{quoted(key)} is not a cell" for key in unknown]
        raise InputError(f"For the search space '{space.name}', {'; '.join(problems)}.", CURE)


def _numbers(value: Any, shape: tuple[int, ...], name: str) -> Any:
    """Returns nested lists of finite floats in `shape` from a tensor, an array or nested sequences."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not shape:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"The alphas '{name}' hold {quoted(value)}, not a number.", CURE) from None
        if not math.isfinite(number):
            raise InputError(
                f"The alphas '{name}' hold {number}, which is not finite.", "Search again with smaller step sizes."
            )
        return number
    return [_numbers(item, shape[1:], name) for item in _sequence(value, shape[0], name)]


def _sequence(value: Any, count: int, name: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or len(value) != count:
        found = f"{len(value)} entries" if isinstance(value, list | tuple) else quoted(value)
        raise InputError(f"The alphas '{name}' have {found} where {count} are needed.", CURE)
    return value
