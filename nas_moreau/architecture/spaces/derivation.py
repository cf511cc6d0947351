"""From the weights of a search to a genotype, by the rule of the search space. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nas_moreau.architecture.spaces.alpha_table import AlphaTable, EdgeWeights, softmax
from nas_moreau.architecture.spaces.genotype import Cell, Genotype
from nas_moreau.architecture.spaces.space import SearchSpace
from nas_moreau.errors import InputError


def derive(space: SearchSpace, alphas: AlphaTable | Mapping[str, Any]) -> Genotype:
    """Returns the genotype with the strongest weights, by the rule of the space.

    Softmax is taken over all operations of an edge, `none` included, in float64; excluded operations are passed over
    afterwards. Rule "top_edges" (DARTS, section 2.4): each node keeps the edges whose strongest operation is strongest,
    the strongest first. Rule "all_edges" (NAS-Bench-201): each edge keeps its strongest operation, `none` edges stay in
    the genotype. Equal weights: the lowest edge, then the lowest operation.

    Args:
        space: Edges, operations and rule.
        alphas: The table of weights, or logits as `AlphaTable.from_logits` takes them: cell name -> (edges,
            operations), optionally "edge_" + cell name -> (edges,), whose softmax over the edges into a node multiplies
            the weights (PC-DARTS).

    Raises:
        InputError: A cell is missing, a shape is wrong, or a number is not finite.
    """
    table, exclude = alpha_table(space, alphas), space.derivation.exclude
    cells = {}
    for name, rows in table.cells.items():
        kept = kept_edges(space, rows)
        cells[name] = Cell(tuple((rows[i].ranked(exclude)[0], *rows[i].edge) for i in kept), space.concat)
    return space.genotype(cells)


def explain(space: SearchSpace, alphas: AlphaTable | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns, for every edge of every cell, what was chosen there and by how much.

    Each row: `cell`; `edge` ("0-2"); `operation` and its softmax `weight`; `runner_up` and `margin` (the weight minus
    the runner-up's), None where there is no second choice; `excluded_weight`, the sum for the excluded operations
    (large: the search would rather have no such edge); `edge_weight`, where edges have weights; `kept`, whether the
    edge is part of the genotype.

    Args:
        space: As for `derive`.
        alphas: As for `derive`.

    Raises:
        InputError: As `derive`.
    """
    table, exclude = alpha_table(space, alphas), space.derivation.exclude
    found = []
    for name, rows in table.cells.items():
        kept = set(kept_edges(space, rows))
        for i, row in enumerate(rows):
            first, *others = row.ranked(exclude)
            found.append(
                {
                    "cell": name,
                    "edge": f"{row.edge[0]}-{row.edge[1]}",
                    "operation": first,
                    "weight": row.weights[first],
                    "runner_up": others[0] if others else None,
                    "margin": row.margin(exclude),
                    "excluded_weight": math.fsum(row.weights.get(name, 0.0) for name in exclude),
                    **({} if row.edge_weight is None else {"edge_weight": row.edge_weight}),
                    "kept": i in kept,
                }
            )
    return found


def kept_edges(space: SearchSpace, rows: tuple[EdgeWeights, ...]) -> list[int]:
    """Returns the numbers of the edges that stay in a cell, node by node, in the order of the genotype.

    Args:
        space: Edges and rule.
        rows: The weights of the cell's edges.
    """
    kept = []
    for into in space.incoming():
        if space.derivation.rule == "top_edges":
            best = {i: rows[i].strength(rows[i].ranked(space.derivation.exclude)[0]) for i in into}
            # sorted is stable, so that of equal weights the lower edge comes first
            into = sorted(into, key=lambda i: -best[i])[: space.derivation.edges_per_node]
        kept += into
    return kept


def alpha_table(space: SearchSpace, alphas: AlphaTable | Mapping[str, Any]) -> AlphaTable:
    """Returns the table of weights of `space` from itself or from logits.

    Args:
        space: Cells, edges and operations.
        alphas: As for `derive`.

    Raises:
        InputError: As `derive`.
    """
    if not isinstance(alphas, AlphaTable):
        return AlphaTable.from_logits(space, alphas)
    alphas.check(space)
    return alphas


def edge_normalised(space: SearchSpace, table: AlphaTable) -> AlphaTable:
    """Returns the table whose weights are a softmax over all pairs of edge and operation that enter a node.

    The softmax of one edge compares its operations and discards how large its logits are. Here edges compete too, as by
    the edge normalisation of PC-DARTS (Xu et al., ICLR 2020, section 3.3) but without edge weights; where a
    search has those, their logits are added. The operations of one edge rank as in `table`, so that a rule which keeps
    every edge chooses the same.

    Args:
        space: Cells, edges and operations.
        table: Made from logits.

    Raises:
        InputError: The table was read from a file, which has no logits.
    """
    cells = {}
    for name, rows in table.cells.items():
        found = list(rows)
        for into in space.incoming():
            logits = [rows[i].logits for i in into]
            if any(row is None for row in logits):
                raise InputError("Edges are normalised by logits, and these are softmax weights.", "Give a checkpoint.")
            shares = iter(softmax([logit for row in logits if row is not None for logit in row.values()]))
            for i in into:
                found[i] = EdgeWeights(rows[i].edge, {operation: next(shares) for operation in rows[i].weights})
        cells[name] = tuple(found)
    return AlphaTable(cells)
