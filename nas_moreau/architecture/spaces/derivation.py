"""From alphas to a genotype, by the rule the space names. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nas_moreau.architecture.spaces.genotype import Cell, Genotype
from nas_moreau.architecture.spaces.space import SearchSpace
from nas_moreau.errors import InputError, quoted

Table = list[list[float]]
CURE = "Give the alphas of this space, as its supernet holds them."


def derive(space: SearchSpace, alphas: Mapping[str, Any]) -> Genotype:
    """Returns the genotype that the alphas stand for.

    Softmax is taken over all operations of an edge, `none` included, in float64; excluded operations are passed over
    afterwards. Rule "top_edges" (DARTS, section 2.4): each node keeps the edges whose strongest operation is strongest,
    the strongest first. Rule "argmax" (NAS-Bench-201): each edge keeps its strongest operation, `none` edges stay in
    the genotype. Equal weights: the lowest edge, then the lowest operation.

    Args:
        space: Edges, operations and rule.
        alphas: Cell name -> logits (edges, operations): tensors, arrays or lists. Optionally "edge_" + cell name ->
            logits (edges,), whose softmax over the edges into a node multiplies the weights (PC-DARTS).

    Raises:
        InputError: A cell is missing, a shape is wrong, or a number is not finite.
    """
    return strongest_genotype(space, mixing_weights(space, alphas))


def strongest_genotype(space: SearchSpace, weights: Mapping[str, Table]) -> Genotype:
    """Returns the genotype that the space's rule takes from weights that are at hand already.

    Args:
        space: Edges, operations and rule.
        weights: Cell name -> (edges, operations), not negative; for "top_edges" comparable between the edges of a node.
    """
    cells = {}
    for name, table in weights.items():
        kept = kept_edges(space, table)
        cells[name] = Cell(tuple((_ranked(space, table[i])[0], *space.edges[i]) for i in kept), space.concat)
    return Genotype(space.name, cells)


def explain(space: SearchSpace, alphas: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns, for every edge of every cell, what was chosen there and by how much.

    Each row: `cell`; `edge` ("0-2"); `operation` and its `weight`; `runner_up` and `margin` (the weight minus the
    runner-up's), None where there is no second choice; `excluded_weight`, what the excluded operations have together
    (large: the search would rather have no such edge); `kept`, whether the edge is part of the genotype.

    Args:
        space: As for `derive`.
        alphas: As for `derive`.

    Raises:
        InputError: As `derive`.
    """
    rows = []
    for name, table in mixing_weights(space, alphas).items():
        kept = set(kept_edges(space, table))
        for i, (source, target) in enumerate(space.edges):
            weights = dict(zip(space.operations, table[i]))
            first, *others = _ranked(space, table[i])
            rows.append({
                "cell": name, "edge": f"{source}-{target}", "operation": first, "weight": weights[first],
                "runner_up": others[0] if others else None,
                "margin": weights[first] - weights[others[0]] if others else None,
                "excluded_weight": math.fsum(weights[excluded] for excluded in space.derivation.exclude),
                "kept": i in kept,
            })  # fmt: skip
    return rows


def kept_edges(space: SearchSpace, table: Table) -> list[int]:
    """Returns the numbers of the edges that stay in a cell, node by node, in the order of the genotype.

    Args:
        space: Edges and rule.
        table: (edges, operations) weights of the cell.
    """
    kept = []
    for into in space.incoming():
        if space.derivation.rule == "top_edges":
            best = {i: max(w for op, w in zip(space.operations, table[i]) if op in space.choices) for i in into}
            # sorted is stable, so that of equal weights the lower edge comes first
            into = sorted(into, key=lambda i: -best[i])[: space.derivation.edges_per_node]
        kept += into
    return kept


def _ranked(space: SearchSpace, weights: Sequence[float]) -> list[str]:
    """Returns the operations that may be chosen, strongest first, the lower one first among equals."""
    pairs = [(weight, name) for name, weight in zip(space.operations, weights) if name in space.choices]
    return [name for _, name in sorted(pairs, key=lambda pair: -pair[0])]


def mixing_weights(space: SearchSpace, alphas: Mapping[str, Any]) -> dict[str, Table]:
    """Returns cell name -> (edges, operations) softmax weights, times the edge weights where there are any.

    Args:
        space: As for `derive`.
        alphas: As for `derive`.

    Raises:
        InputError: As `derive`.
    """
    given = [str(key) for key in alphas]
    missing = [name for name in space.cells if name not in given]
    unknown = [key for key in given if key.removeprefix("edge_") not in space.cells]
    if missing or unknown:
        said = "; ".join(
            [f"alphas of cell '{name}' are missing" for name in missing]
            + [f"{quoted(key)} is no cell" for key in unknown]
        )
        raise InputError(f"For the search space '{space.name}', {said}.", CURE)
    weights = {}
    for name in space.cells:
        table = [_softmax(row) for row in _numbers(alphas[name], space.alpha_shape, name)]
        if f"edge_{name}" in given:
            logits = _numbers(alphas[f"edge_{name}"], space.alpha_shape[:1], f"edge_{name}")
            for into in space.incoming():
                for i, share in zip(into, _softmax([logits[i] for i in into])):
                    table[i] = [share * weight for weight in table[i]]
        weights[name] = table
    return weights


def node_weights(space: SearchSpace, alphas: Mapping[str, Any]) -> dict[str, Table]:
    """Returns cell name -> (edges, operations), the softmax over all pairs of edge and operation that enter a node.

    The softmax of one edge tells how its operations compare and forgets how large its logits are; here edges compete
    too, as by the edge normalisation of PC-DARTS (Xu et al., ICLR 2020, section 3.3) but without weights of their own;
    where a search has those, they are added to the logits. Operations of one edge rank as in `mixing_weights`, so that
    a rule which keeps every edge chooses the same.

    Args:
        space: As for `derive`.
        alphas: As for `derive`.

    Raises:
        InputError: As `derive`.
    """
    mixing_weights(space, alphas)  # for its checks
    weights = {}
    for name in space.cells:
        logits = _numbers(alphas[name], space.alpha_shape, name)
        if f"edge_{name}" in alphas:
            extra = _numbers(alphas[f"edge_{name}"], space.alpha_shape[:1], f"edge_{name}")
            logits = [[logit + more for logit in row] for row, more in zip(logits, extra)]
        table: Table = [[] for _ in space.edges]
        for into in space.incoming():
            shares = _softmax([logit for i in into for logit in logits[i]])
            for place, i in enumerate(into):
                table[i] = shares[place * len(space.operations) : (place + 1) * len(space.operations)]
        weights[name] = table
    return weights


def _numbers(value: Any, shape: tuple[int, ...], name: str) -> Any:
    """Returns nested lists of finite floats in `shape` from a tensor, an array or nested sequences."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not shape:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"The alphas '{name}' hold {quoted(value)}, which is no number.", CURE) from None
        if not math.isfinite(number):
            raise InputError(
                f"The alphas '{name}' hold {number}, which is not finite.", "Search again with smaller step sizes."
            )
        return number
    if not isinstance(value, list | tuple) or len(value) != shape[0]:
        found = f"{len(value)} entries" if isinstance(value, list | tuple) else quoted(value)
        raise InputError(f"The alphas '{name}' have {found} where {shape[0]} are needed.", CURE)
    return [_numbers(item, shape[1:], name) for item in value]


def _softmax(logits: Sequence[float]) -> list[float]:
    highest = max(logits)
    powers = [math.exp(logit - highest) for logit in logits]
    # fsum does not depend on the order, so that edges with the same logits in another order tie exactly
    total = math.fsum(powers)
    return [power / total for power in powers]
