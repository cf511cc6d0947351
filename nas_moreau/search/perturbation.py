"""Perturbation-based derivation: an operation is worth the loss that its removal from the supernet causes.

DARTS-PT (Wang et al., "Rethinking Architecture Selection in Differentiable NAS", ICLR 2021): edge by edge in random
order, the operation whose removal increases the loss most is kept and the edge becomes one-hot; then each node keeps
the edges whose removal increases it most. Two departures: the supernet is not trained between the decisions, so the
cost is that of evaluations alone, and the loss decides, not the accuracy, which ties often on few images. The remaining
weights are not renormalised.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from nas_moreau.architecture import AlphaTable, Genotype, SearchSpace, Supernet
from nas_moreau.architecture.spaces.genotype import Cell
from nas_moreau.data import Part, seed_for
from nas_moreau.search.mixture_scores import score_mixtures
from nas_moreau.search.supernet_problem import Mixing


def perturb(
    space: SearchSpace,
    supernet: Supernet,
    table: AlphaTable,
    part: Part,
    seed: int,
    channels_last: bool = False,
) -> tuple[Genotype, dict[str, Any]]:
    """Returns the cell, and a record of every decision with the losses after each removal.

    Operations that the derivation excludes cannot be kept, nor can `none`, whose removal changes nothing.

    Args:
        space: The space of the supernet.
        supernet: With the weights of the search.
        table: The weights of the search; the supernet applies edge weights itself.
        part: Images of the architecture split.
        seed: Seed of the order of edges and nodes.
        channels_last: Memory layout of the batches.
    """
    like = supernet.classifier.weight
    mixture = {name: torch.zeros(space.alpha_shape, dtype=like.dtype, device=like.device) for name in space.cells}
    for name, rows in table.cells.items():
        for i, row in enumerate(rows):
            weights = torch.tensor(list(row.weights.values()), dtype=like.dtype, device=like.device)
            mixture[name][i, : len(weights)] = weights

    def losses(cell: str, without: list[tuple[int, int | slice]]) -> list[float]:
        removed = [{**mixture, cell: _without(mixture[cell], *place)} for place in without]
        mixtures = [Mixing([tables[name] for name in space.cells]) for tables in removed]
        return [score.loss for score in score_mixtures(supernet, mixtures, part, channels_last)]

    decisions: list[dict[str, Any]] = []
    kept: dict[tuple[str, int], str] = {}
    draw = random.Random(seed_for(seed, "order of perturbation"))
    places = [(cell, edge) for cell in space.cells for edge in range(len(space.edges))]
    for cell, edge in draw.sample(places, len(places)):
        choices = space.edge_choices(cell, edge)
        numbers = {name: k for k, name in enumerate(space.candidates(cell, edge)) if name in choices and name != "none"}
        tried = dict(zip(numbers, losses(cell, [(edge, k) for k in numbers.values()])))
        kept[cell, edge] = max(numbers, key=lambda name: tried[name])
        mixture[cell][edge] = 0
        mixture[cell][edge, numbers[kept[cell, edge]]] = 1
        decisions.append(
            {"cell": cell, "edge": list(space.edges[edge]), "kept": kept[cell, edge], "loss_without": tried}
        )

    stay = {cell: list(range(len(space.edges))) for cell in space.cells}
    limit = space.derivation.edges_per_node
    nodes = [(cell, node) for cell in space.cells for node in range(space.inputs, space.inputs + space.nodes)]
    for cell, node in draw.sample(nodes, len(nodes)) if limit is not None else []:
        into = [i for i in stay[cell] if space.edges[i][1] == node]
        if len(into) <= limit:
            continue
        found = losses(cell, [(edge, slice(None)) for edge in into])
        best_edges = sorted(range(len(into)), key=lambda i: -found[i])[:limit]
        for place, edge in enumerate(into):
            if place not in best_edges:
                stay[cell].remove(edge)
                mixture[cell][edge] = 0
        decisions.append(
            {
                "cell": cell,
                "node": node,
                "kept": [list(space.edges[into[i]]) for i in sorted(best_edges)],
                "loss_without": {f"{a}-{b}": loss for (a, b), loss in zip((space.edges[i] for i in into), found)},
            }
        )
    cells = {
        cell: Cell(tuple((kept[cell, edge], *space.edges[edge]) for edge in stay[cell]), space.concat)
        for cell in space.cells
    }
    record = {
        "split": "architecture",
        "images": len(part),
        "decisions": decisions,
        "note": "no training between the decisions; losses in nats, by batch statistics",
    }
    return space.genotype(cells), record


def _without(weights: Tensor, edge: int, operation: int | slice) -> Tensor:
    weights = weights.clone()
    weights[edge, operation] = 0
    return weights
