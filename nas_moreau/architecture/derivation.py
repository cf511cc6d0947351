"""From alphas to a genotype, by the rule the space names. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nas_moreau.architecture.genotype import Cell, Edge, Genotype
from nas_moreau.architecture.space import SearchSpace
from nas_moreau.errors import InputError

Table = list[list[float]]


def derive(space: SearchSpace, alphas: Mapping[str, Any]) -> Genotype:
    """Returns the genotype that the alphas stand for.

    Softmax is taken over all operations of an edge, `none` included, in float64; excluded operations are passed over
    afterwards. Rule "top_edges" (DARTS, section 2.4): each node keeps the edges whose strongest operation is strongest.
    Rule "argmax" (NAS-Bench-201): each edge keeps its strongest operation. Equal weights: the lowest edge, then the
    lowest operation.

    Args:
        space: Edges, operations and rule.
        alphas: Cell name -> logits (edges, operations): tensors, arrays or lists. Optionally "edge_" + cell name ->
            logits (edges,), whose softmax over the edges into a node multiplies the weights (PC-DARTS).

    Raises:
        InputError: A cell is missing, a shape is wrong, or a number is not finite.
    """
    cells = {}
    for name, table in mixing_weights(space, alphas).items():
        edges: list[Edge] = []
        for node in range(space.inputs, space.inputs + space.nodes):
            into = [i for i, (_, target) in enumerate(space.edges) if target == node]
            best = {i: _strongest(space, table[i]) for i in into}
            if space.derivation.rule == "top_edges":
                # sorted is stable, so equal weights keep the lower edge
                into = sorted(into, key=lambda i: -table[i][best[i]])[: space.derivation.edges_per_node]
            edges += [(space.operations[best[i]], *space.edges[i]) for i in into]
        cells[name] = Cell(tuple(edges), space.concat)
    return Genotype(space.name, cells)


def mixing_weights(space: SearchSpace, alphas: Mapping[str, Any]) -> dict[str, Table]:
    """Returns cell name -> (edges, operations) softmax weights, times the edge weights where there are any.

    Raises:
        InputError: As `derive`.
    """
    unknown = set(alphas) - set(space.cells) - {f"edge_{name}" for name in space.cells}
    if unknown or not set(space.cells) <= set(alphas):
        raise InputError(
            f"The alphas are those of {', '.join(sorted(alphas)) or 'no cell'}, and '{space.name}' has the cells "
            f"{', '.join(space.cells)}.",
            "Give the alphas of this space.",
        )
    weights = {}
    for name in space.cells:
        logits = _numbers(alphas[name], name)
        rows, columns = space.alpha_shape
        if not isinstance(logits, list) or len(logits) != rows or any(
            not isinstance(row, list) or len(row) != columns for row in logits
        ):
            raise InputError(f"The alphas of '{name}' are not {rows} rows of {columns}.", "Give the alphas of this space.")
        table = [_softmax(row, name) for row in logits]
        if f"edge_{name}" in alphas:
            edge_logits = _numbers(alphas[f"edge_{name}"], f"edge_{name}")
            if not isinstance(edge_logits, list) or len(edge_logits) != rows:
                raise InputError(f"The edge weights of '{name}' are not {rows} numbers.", "Give one for each edge.")
            for node in range(space.inputs, space.inputs + space.nodes):
                into = [i for i, (_, target) in enumerate(space.edges) if target == node]
                for i, share in zip(into, _softmax([edge_logits[i] for i in into], f"edge_{name}")):
                    table[i] = [share * value for value in table[i]]
        weights[name] = table
    return weights


def explain(space: SearchSpace, alphas: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns, for every edge, what was chosen there and by how much.

    Each row: cell, edge ("0-2"), operation, weight, runner_up, margin (weight minus the runner-up's), kept.
    """
    genotype = derive(space, alphas)
    rows = []
    for name, table in mixing_weights(space, alphas).items():
        kept = {(a, b) for _, a, b in genotype.cells[name].edges}
        for edge, weights in zip(space.edges, table):
            order = sorted((k for k, op in enumerate(space.operations) if op in space.choices), key=lambda k: -weights[k])
            first, second = order[0], order[1] if len(order) > 1 else None
            rows.append({
                "cell": name, "edge": f"{edge[0]}-{edge[1]}", "operation": space.operations[first],
                "weight": weights[first], "runner_up": None if second is None else space.operations[second],
                "margin": None if second is None else weights[first] - weights[second], "kept": edge in kept,
            })  # fmt: skip
    return rows


def _strongest(space: SearchSpace, weights: list[float]) -> int:
    """Returns the index of the strongest operation that may be the result; the lowest among equals."""
    allowed = [k for k, name in enumerate(space.operations) if name not in space.derivation.exclude]
    return max(allowed, key=lambda k: (weights[k], -k))


def _numbers(value: Any, name: str) -> Any:
    return value.tolist() if hasattr(value, "tolist") else [list(r) if isinstance(r, tuple) else r for r in value]


def _softmax(logits: list[Any], name: str) -> list[float]:
    if not all(isinstance(a, (int, float)) and math.isfinite(a) for a in logits):
        raise InputError(f"The alphas of '{name}' hold a number that is not finite.", "Search again with a lower rate.")
    highest = max(logits)
    powers = [math.exp(a - highest) for a in logits]
    total = math.fsum(powers)
    return [power / total for power in powers]
